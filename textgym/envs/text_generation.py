"""Text generation as a Gymnasium environment: one step emits one token."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from rich.text import Text

from textgym.envs.arguments import TextGenerationArguments, document_arguments, init_takes
from textgym.envs.text_environment import LastStep, TextEnvironment
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, ScoredCompletions
from textgym.rendering import LiveText, caption_text, credit_text

__all__ = ["TextGenerationEnv"]


@document_arguments
class TextGenerationEnv(TextEnvironment, gym.Env[dict[str, np.ndarray], np.int64]):
    r"""Write a completion of a prompt, token by token; a reward model scores it at the end.

    ## Description

    The agent sees a prompt and what it has written so far, and chooses the next token. When the
    completion ends, a transformer reward model scores the text. All rewards before that are 0. This
    is the full token-level decision process of reinforcement learning from human feedback. A
    transition appends the token, and is deterministic.

    ## Observation Space

    A `Dict` of two arrays, right-padded: the prompt, then the completion so far.

    | key              | shape           | dtype | values                                   |
    |------------------|-----------------|-------|------------------------------------------|
    | `input_ids`      | `(max_length,)` | int64 | token ids, 0 … vocab_size - 1            |
    | `attention_mask` | `(max_length,)` | int8  | 1 at tokens, 0 at padding                |

    `max_length` is the longest prompt plus `max_new_tokens`.

    ## Action Space

    `Discrete(vocab_size)`: the next token. The end token (EOS) is illegal while fewer than
    `min_new_tokens` tokens have been generated. If an agent takes it anyway, the episode ends and
    is scored.

    ## Rewards

    0 until the episode ends, then the score: the reward model's number for prompt and completion
    together; by default, a classifier's logit(positive) - logit(negative). If the classifier's
    config has the mean and the standard deviation of the score over reference completions, the
    score is centred and scaled by them (`normalize_score`).

    ## Starting State

    A prompt from the prompt source, and a budget of new tokens, uniform on `min_new_tokens` …
    `max_new_tokens`. Both are drawn from the generator that `reset(seed=)` seeds.
    `reset(options={"prompt": "...", "max_new_tokens": 12})` sets one of them, or both.

    ## Episode End

    `terminated` when the agent takes EOS or has used up the budget. Both are part of the task, and
    both are scored. `truncated` is never set here; it is for limits from outside. The budget is a
    hidden part of the state unless `min_new_tokens == max_new_tokens`; the `info` of `reset`
    contains it.

    The ids have no `max_episode_steps`. Gymnasium's `TimeAwareObservation` asks for one: pass
    `gym.make(..., max_episode_steps=max_new_tokens + 1)`, a limit that no episode reaches.

    ## Information

    | key                 | when           | type               | meaning                        |
    |---------------------|----------------|--------------------|--------------------------------|
    | `token_budget`      | reset          | int                | most tokens of this completion |
    | `action_mask`       | reset, step \* | int8 (vocab_size,) | 1 at the legal actions         |
    | `prompt`            | end            | str                | text of the prompt             |
    | `completion`        | end            | str                | text of the completion         |
    | `score`             | end            | float              | the score, as in the reward    |
    | `prompt_tokens`     | end            | int                | tokens of the prompt           |
    | `completion_tokens` | end            | int                | tokens generated, with EOS     |

    \* with `action_mask_in_info=True`.

    ## Arguments

    ```python
    import gymnasium as gym
    import textgym

    env = gym.make("ABC-RLHF-v0", prompts=["This film", "I was"], max_new_tokens=20)
    ```

    ## Version History

    * v0: Initial version.

    Args:
        arguments: The fields of :class:`textgym.envs.TextGenerationArguments`.

    Raises:
        InvalidArgumentError: If an argument cannot be used; the message names the remedy.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (Gymnasium declares it without ClassVar)
        "render_modes": ["ansi", "html", "human", "rgb_array"],
        "render_fps": 10,
    }

    @init_takes(TextGenerationArguments)
    def __init__(self, arguments: TextGenerationArguments) -> None:
        self._set_up(arguments)
        self.observation_space = self.task.observation_space  # type: ignore[assignment]
        self.action_space = self.task.action_space
        self._prompt_ids: list[int] = []
        self._completion_ids: list[int] = []
        self._input_ids, self._attention_mask = self.task.padded([])
        self._budget = 0
        self._ended = False
        self._last_token = -1  # none
        self._scored: ScoredCompletions | None = None
        self._live = LiveText(self.metadata["render_fps"])

    @property
    def completions(self) -> Completions:
        """The text so far, as a batch of one without padding."""
        return Completions.from_lists(
            [self._prompt_ids], [self._completion_ids], self.task.pad_token_id
        )

    @property
    def ended(self) -> np.ndarray:
        """Whether the episode has ended and not been reset, bool, shape (1,)."""
        return np.array([self._ended])

    @property
    def last_step(self) -> LastStep:
        """What the last step did, in arrays of one entry."""
        finished = self._scored is not None
        return LastStep(np.array([self._last_token]), np.array([finished]), self._scored)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; see the class for the options."""
        super().reset(seed=seed)
        self._prompt_ids, self._budget = self.task.draw(self.np_random, options)
        self._completion_ids = []
        self._input_ids, self._attention_mask = self.task.padded(self._prompt_ids)
        self._ended = False
        self._last_token, self._scored = -1, None
        if self.render_mode == "human":
            self._live.start(self._text())
        return self._observation(), {"token_budget": self._budget, **self._mask_info()}

    def step(
        self, action: np.int64 | int
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Append one token.

        Raises:
            ResetNeeded: If no episode is under way.
            InvalidArgumentError: If the action is not a token id.
        """
        if self._ended or not self._prompt_ids:
            raise ResetNeeded("the episode has ended (or never began): call reset() before step()")
        if not self.action_space.contains(action):
            last = self.task.vocab_size - 1
            raise InvalidArgumentError(
                "action", action, f"must be one token id from 0 to {last}, an int or NumPy integer"
            )
        token = int(action)
        position = len(self._prompt_ids) + len(self._completion_ids)
        self._input_ids[position], self._attention_mask[position] = token, 1
        self._completion_ids.append(token)
        self._last_token = token
        ended = token == self.task.eos_token_id or len(self._completion_ids) == self._budget
        self._ended = ended
        reward, info = 0.0, self._mask_info()
        if ended:
            completions = self.completions
            self._scored = self.task.score(completions, self._readouts)
            final = self.task.final_infos(completions, np.array([self._budget]), self._scored)
            info |= {name: _first(values) for name, values in final.items()}
            reward = info["score"]
        if self.render_mode == "human":
            self._show_step()
        return self._observation(), reward, ended, False, info

    def render(self) -> str | np.ndarray | None:  # type: ignore[override]
        """Show the episode: the prompt (dim) and the tokens so far.

        After the end, the tokens are coloured by their credit: blue is positive, vermilion and
        underlined is negative. Score and legend follow.

        Returns:
            With `render_mode="ansi"`, a string with ANSI codes. With `"html"`, a fragment of HTML
            with its style, a str that notebooks show as such. With `"rgb_array"`, pixels, shape
            (height, width, 3), uint8; the shape is the same in all episodes. With `"human"`, None:
            `reset` and `step` print as they go, on a terminal at most 10 tokens per second.
        """
        if self.render_mode is None:
            gym.logger.warn('render() needs gym.make(..., render_mode="ansi") or another mode')
            return None
        if self.render_mode == "human":
            return None
        return self._render_episode()

    def _render_episode(self) -> str | np.ndarray:
        credit, score = self._credit_and_score()
        return self._rendered(self._prompt_ids, self._completion_ids, credit, score)

    def _credit_and_score(self) -> tuple[list[float] | None, float | None]:
        """Of the finished episode; None while it is under way."""
        if self._scored is None:
            return None, None
        credit = self.rendered_credit(self._scored)[self._scored.completion_mask].tolist()
        return credit, float(self._scored.score[0])

    def _text(self, credit: list[float] | None = None) -> Text:
        pieces = self.task.pieces(self._completion_ids)
        return credit_text(self.task.decode(self._prompt_ids), pieces, credit)

    def _show_step(self) -> None:
        credit, score = self._credit_and_score()
        if score is None:
            self._live.grow(self._text())
        else:
            self._live.finish(self._text(credit), caption_text(score, credit))

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "input_ids": self._input_ids.copy(),
            "attention_mask": self._attention_mask.copy(),
        }

    def _mask_info(self) -> dict[str, Any]:
        if not self.action_mask_in_info:
            return {}
        return {"action_mask": self.task.action_mask(len(self._completion_ids))}


def _first(values: np.ndarray) -> Any:
    """The only entry of a batch of one; numbers as Python's own."""
    return values[0].item() if isinstance(values[0], np.generic) else values[0]
