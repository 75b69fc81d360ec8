"""The batched environment: many episodes step together, one reward-model call per step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.envs.task import TextEnvironment
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, RewardModel
from textgym.prompts import PromptSource

__all__ = ["TextGenerationVectorEnv"]


class TextGenerationVectorEnv(TextEnvironment, VectorEnv):
    """Several :class:`textgym.envs.TextGenerationEnv` in one, with one reward-model call per step.

    `gym.make_vec("ABC-RLHF-v0", num_envs=64)` returns it. Rules, observations, rewards and infos
    are those of the single environment; row i under seed s runs as a single environment does under
    the same seed. All episodes that end in a step are scored in one forward pass.

    `autoreset_mode` decides what follows the end of an episode (Gymnasium's
    :class:`~gymnasium.vector.AutoresetMode`):

    - `NEXT_STEP` (default): the next step ignores the row's action and starts a new episode;
    - `SAME_STEP`: the step that ends an episode returns the first observation of the next one; the
      last observation and info are in `infos["final_obs"]` and `infos["final_info"]`;
    - `DISABLED`: the row waits. It ignores its actions, keeps its observation, and gets reward 0
      and `terminated` True without infos, until `reset(options={"reset_mask": mask})` with a
      boolean array of shape (num_envs,) starts it anew. Whole-episode rollouts want this mode.

    Infos hold arrays of shape (num_envs,) with a mask `_key` beside each key, as Gymnasium has it.
    `reset(seed=s)` seeds row i with s + i; a list seeds the rows one by one, and None in it leaves
    a row's generator as it is.

    Args:
        num_envs: Number of rows.
        tokenizer: See :class:`textgym.envs.TextGenerationEnv`, as for all but the last.
        reward_model: As there.
        prompts: As there.
        prompt_column: As there.
        min_new_tokens: As there.
        max_new_tokens: As there.
        normalize_score: As there.
        device: As there.
        dtype: As there.
        action_mask_in_info: As there.
        render_mode: `"ansi"` or None.
        autoreset_mode: What follows the end of an episode.

    Raises:
        InvalidArgumentError: If an argument cannot be used; the message names the remedy.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        tokenizer: str | Path | PreTrainedTokenizerBase = "embedded",
        reward_model: str | Path | PreTrainedModel | RewardModel = "embedded",
        prompts: str | Path | Sequence[str] | PromptSource | Any = "embedded",
        *,
        prompt_column: str | None = None,
        min_new_tokens: int = 8,
        max_new_tokens: int = 16,
        normalize_score: bool = True,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        action_mask_in_info: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise InvalidArgumentError("num_envs", num_envs, "must be a whole number of at least 1")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InvalidArgumentError("render_mode", render_mode, 'choose "ansi" or None')
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            raise InvalidArgumentError(
                "autoreset_mode",
                autoreset_mode,
                "choose AutoresetMode.NEXT_STEP, SAME_STEP or DISABLED (gymnasium.vector)",
            ) from None
        task = self.task_class(
            tokenizer,
            reward_model,
            prompts,
            prompt_column,
            min_new_tokens,
            max_new_tokens,
            normalize_score,
            device,
            dtype,
        )
        self._set_task(task, renders=render_mode is not None)
        self.num_envs = num_envs
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.action_mask_in_info = action_mask_in_info
        self.render_mode = render_mode
        self.scored_rows: np.ndarray = np.zeros(0, dtype=np.int64)
        """The rows that ``scored`` belongs to, shape (number finished,)."""
        self.tokens_taken = np.full(num_envs, -1, dtype=np.int64)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        # The texts are where their observations are; a step writes one column of each row.
        shape = (num_envs, self.task.max_length)
        self._input_ids = np.full(shape, self.task.pad_token_id, dtype=np.int64)
        self._attention_mask = np.zeros(shape, dtype=np.int8)
        self._prompt_lengths = np.zeros(num_envs, dtype=np.int64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)  # of prompt and completion
        self._budgets = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._started = False
        self._last_renderings: list[str] = [""] * num_envs

    @property
    def completions(self) -> Completions:
        """The texts so far; rows that were just reset have no completion yet."""
        longest = self._lengths.max()
        attention_mask = self._attention_mask[:, :longest] != 0
        is_generated = np.arange(longest) >= self._prompt_lengths[:, None]
        return Completions(
            torch.from_numpy(self._input_ids[:, :longest].copy()),
            torch.from_numpy(attention_mask),
            torch.from_numpy(attention_mask & is_generated),
        )

    @property
    def texts(self) -> list[list[int]]:
        """Token ids of the texts so far, prompt and completion, one list per row."""
        rows = zip(self._input_ids, self._lengths.tolist(), strict=True)
        return [ids[:length].tolist() for ids, length in rows]

    @property
    def num_new_tokens(self) -> np.ndarray:
        """How many tokens each completion has so far, shape (num_envs,), int64."""
        return self._lengths - self._prompt_lengths

    @property
    def ended(self) -> np.ndarray:
        """Rows whose episode has ended and that have not been reset, shape (num_envs,), bool."""
        return self._ended.copy()

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,  # type: ignore[override]
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes in all rows, or in those of ``options["reset_mask"]``.

        Args:
            seed: A number s for seeds s, s + 1, …; one seed (or None) per row; or None.
            options: ``reset_mask``, bool, shape (num_envs,), the rows to reset; ``prompt`` and
                ``max_new_tokens`` as in the single environment, for all these rows.

        Raises:
            InvalidArgumentError: If the number of seeds or an option cannot be used.
        """
        seeds = self._row_seeds(seed)
        options = dict(options or {})
        mask = self._reset_mask(options.pop("reset_mask", None))
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(mask).tolist():
            if seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
            infos = self._add_info(infos, self._start(row, options), row)
        self._add_action_masks(infos, mask)
        self._started = True
        self.scored, self.scored_rows = None, np.zeros(0, dtype=np.int64)
        self.tokens_taken = np.full(self.num_envs, -1, dtype=np.int64)
        return self._observation(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token to every row.

        Args:
            actions: Token ids, shape (num_envs,).

        Returns:
            Observations, rewards (float64), terminated and truncated (bool), each with a leading
            axis of num_envs, and infos.

        Raises:
            ResetNeeded: If the environment was never reset.
            InvalidArgumentError: If the actions are not token ids, one per row.
        """
        if not self._started:
            raise ResetNeeded("call reset() before step()")
        tokens = np.asarray(actions)
        if (
            tokens.shape != (self.num_envs,)
            or tokens.dtype.kind not in "iu"
            or tokens.min() < 0
            or tokens.max() >= self.task.vocab_size
        ):
            raise InvalidArgumentError(
                "actions",
                actions,
                f"must be {self.num_envs} token ids from 0 to {self.task.vocab_size - 1}",
            )
        infos: dict[str, Any] = {}
        waiting = self._ended.copy()
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            for row in np.flatnonzero(waiting).tolist():
                infos = self._add_info(infos, self._start(row), row)
        self.tokens_taken = np.where(waiting, -1, tokens.astype(np.int64))
        finished = self._append(np.flatnonzero(~waiting))
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated = self._ended.copy()
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        for row, info in zip(finished.tolist(), self._score(finished), strict=True):
            rewards[row] = info["score"]
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                if self.action_mask_in_info:
                    info["action_mask"] = self.task.action_mask(int(self.num_new_tokens[row]))
                final = {"final_obs": self._row_observation(row), "final_info": info}
                infos = self._add_info(infos, final, row)
                info = self._start(row)
            infos = self._add_info(infos, info, row)
        self._add_action_masks(infos, ~(waiting & self._ended))
        return self._observation(), rewards, terminated, truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """With `render_mode="ansi"`, the text of each row's episode; see the single environment.

        A row that was reset in the last step shows the episode that ended in it.
        """
        if self.render_mode is None:
            gym.logger.warn('render() needs gym.make_vec(..., render_mode="ansi")')
            return None
        texts = []
        for row in range(self.num_envs):
            if row in self.scored_rows or self._ended[row]:
                texts.append(self._last_renderings[row])
            else:
                texts.append(self.task.render(*self._prompt_and_completion(row)))
        return tuple(texts)

    def _row_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + row for row in range(self.num_envs)]
        seeds = [None if value is None else int(value) for value in seed]
        if len(seeds) != self.num_envs:
            raise InvalidArgumentError(
                "seed", seed, f"a list of seeds must have one per row, that is {self.num_envs}"
            )
        return seeds

    def _reset_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if (
            not isinstance(mask, np.ndarray)
            or mask.shape != (self.num_envs,)
            or mask.dtype != np.bool_
            or not mask.any()
        ):
            raise InvalidArgumentError(
                'options["reset_mask"]',
                mask,
                f"must be a boolean array of shape ({self.num_envs},) with at least one True",
            )
        if not self._started and not mask.all():
            raise InvalidArgumentError(
                'options["reset_mask"]', mask, "the first reset must cover all rows"
            )
        return mask

    def _start(self, row: int, options: dict[str, Any] | None = None) -> dict[str, Any]:
        generator = self._generators[row]
        if generator is None:
            generator = self._generators[row] = seeding.np_random()[0]
        prompt, budget = self.task.draw(generator, options)
        self._input_ids[row], self._attention_mask[row] = self.task.padded(prompt)
        self._prompt_lengths[row] = self._lengths[row] = len(prompt)
        self._budgets[row] = budget
        self._ended[row] = False
        return {"token_budget": budget}

    def _append(self, rows: np.ndarray) -> np.ndarray:
        """Append the tokens taken to some rows; returns those whose episode that ends."""
        tokens, columns = self.tokens_taken[rows], self._lengths[rows]
        self._input_ids[rows, columns] = tokens
        self._attention_mask[rows, columns] = 1
        self._lengths[rows] += 1
        is_full = (self.num_new_tokens == self._budgets)[rows]
        is_over = is_full | (tokens == self.task.eos_token_id)
        self._ended[rows] = is_over
        return rows[is_over]

    def _score(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Score finished rows in one call; one final info per row."""
        self.scored, self.scored_rows = None, rows
        if not rows.size:
            return []
        texts = [self._prompt_and_completion(row) for row in rows.tolist()]
        prompts = [prompt for prompt, _ in texts]
        completions = [completion for _, completion in texts]
        self.scored = self.task.score(prompts, completions, self._readouts)
        if self.render_mode is not None:
            scores, credit = self.scored.score.tolist(), self.rendered_credit(self.scored)
            for i, row in enumerate(rows.tolist()):
                shares = credit[i][self.scored.completion_mask[i]].tolist()
                self._last_renderings[row] = self.task.render(*texts[i], shares, scores[i])
        budgets = self._budgets[rows].tolist()
        return self.task.final_infos(prompts, completions, budgets, self.scored)

    def _prompt_and_completion(self, row: int) -> tuple[list[int], list[int]]:
        start, end = self._prompt_lengths[row], self._lengths[row]
        return self._input_ids[row, :start].tolist(), self._input_ids[row, start:end].tolist()

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "input_ids": self._input_ids.copy(),
            "attention_mask": self._attention_mask.copy(),
        }

    def _row_observation(self, row: int) -> dict[str, np.ndarray]:
        return {
            "input_ids": self._input_ids[row].copy(),
            "attention_mask": self._attention_mask[row].copy(),
        }

    def _add_action_masks(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        """Tell which tokens are legal now in some rows, shape (num_envs,), bool."""
        if self.action_mask_in_info and rows.any():
            masks = self.task.action_masks(self.num_new_tokens)
            masks[~rows] = False
            infos["action_mask"], infos["_action_mask"] = masks.view(np.int8), rows.copy()
