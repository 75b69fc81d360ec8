"""The batched environment: many episodes step together, one reward-model call per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from textgym.checks import check_whole_number
from textgym.envs.arguments import VectorArguments, document_arguments, init_takes
from textgym.envs.infos import put
from textgym.envs.task import check_actions, check_options
from textgym.envs.text_environment import LastStep, TextEnvironment
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, ScoredCompletions

__all__ = ["TextGenerationVectorEnv"]


@document_arguments
class TextGenerationVectorEnv(TextEnvironment, VectorEnv):
    """Several :class:`textgym.envs.TextGenerationEnv` in one, with one reward-model call per step.

    `gym.make_vec("ABC-RLHF-v0", num_envs=64)` returns it. Rules, observations, rewards and infos
    are those of the single environment. With the same seed, a row does what a single environment
    does. All episodes that end in a step are scored in one forward pass.

    `autoreset_mode` decides what follows the end of an episode (Gymnasium's
    :class:`~gymnasium.vector.AutoresetMode`):

    - `NEXT_STEP` (default): the next step ignores the row's action and starts a new episode;
    - `SAME_STEP`: the step that ends an episode returns the first observation of the next one; the
      last observation and info are in `infos["final_obs"]` and `infos["final_info"]`;
    - `DISABLED`: the row waits. It ignores its actions, keeps its observation, and gets reward 0
      and `terminated` True without infos. `reset(options={"reset_mask": mask})`, with a boolean
      array of shape (num_envs,), starts it anew. Rollouts of whole episodes need this mode.

    Infos hold arrays of shape (num_envs, ...), with a mask `_key` beside each key, as in
    Gymnasium. `reset(seed=s)` seeds row i with s + i. A list of seeds seeds the rows one by one;
    None in it leaves the generator of its row as it is.

    Args:
        arguments: The fields of :class:`textgym.envs.VectorArguments`.

    Raises:
        InvalidArgumentError: If an argument cannot be used; the message names the remedy.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (Gymnasium declares it without ClassVar)
        "render_modes": ["ansi", "html", "rgb_array"],
        "render_fps": 10,
    }

    @init_takes(VectorArguments)
    def __init__(self, arguments: VectorArguments) -> None:
        num_envs = check_whole_number("num_envs", arguments.num_envs, 1, 2**31 - 1)
        try:
            self.autoreset_mode = AutoresetMode(arguments.autoreset_mode)
        except ValueError:
            raise InvalidArgumentError(
                "autoreset_mode",
                arguments.autoreset_mode,
                'choose "NextStep", "SameStep" or "Disabled", or the AutoresetMode of that name '
                "(gymnasium.vector)",
            ) from None
        self._set_up(arguments)
        self.num_envs = num_envs
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        # The observations are the only copy of the texts; a step writes one column of each row.
        shape = (num_envs, self.task.max_length)
        self._input_ids = np.full(shape, self.task.pad_token_id, dtype=np.int64)
        self._attention_mask = np.zeros(shape, dtype=np.int8)
        self._prompt_lengths = np.zeros(num_envs, dtype=np.int64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)  # of prompt and completion
        self._budgets = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._started = False
        self._last_step = self._no_step()
        self._last_episodes: list[tuple[Any, ...]] = [()] * num_envs

    @property
    def completions(self) -> Completions:
        """The texts so far, padded on the right; a row that was just reset has no completion."""
        return self._completions_of(slice(None))

    @property
    def ended(self) -> np.ndarray:
        """Rows whose episode has ended and not been reset, bool, shape (num_envs,)."""
        return self._ended.copy()

    @property
    def last_step(self) -> LastStep:
        """What the last step did."""
        return self._last_step

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
        options = check_options(options, ("reset_mask", *self.task.option_names))
        rows = self._reset_mask(options.pop("reset_mask", None))
        for row in np.flatnonzero(rows).tolist():
            if seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
        infos: dict[str, Any] = {}
        self._start(rows, infos, options)
        self._put_action_masks(infos, rows)
        self._started = True
        self._last_step = self._no_step()
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
        given = check_actions(actions, self.num_envs, self.task.vocab_size, "token ids")
        tokens = given.astype(np.int64)
        infos: dict[str, Any] = {}
        waiting = self._ended.copy()
        if waiting.any() and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._start(waiting, infos)
        finished = self._append(tokens, ~waiting)
        terminated = self._ended.copy()
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        scored = None
        if finished.any():
            completions = self._completions_of(finished)
            scored = self.task.score(completions, self._readouts)
            final = self.task.final_infos(completions, self._budgets[finished], scored)
            rewards[finished] = final["score"]
            if self.render_mode is not None:
                self._keep_finished(finished, scored)
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                self._put_final(infos, final, finished)
                self._start(finished, infos)
            else:
                for name, values in final.items():
                    put(infos, name, values, finished)
        self._last_step = LastStep(np.where(waiting, -1, tokens), finished, scored)
        self._put_action_masks(infos, ~(waiting & self._ended))
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observation(), rewards, terminated, truncated, infos

    def render(self) -> tuple[str | np.ndarray, ...] | None:
        """Show the episode of each row, as the single environment does.

        A row that was reset in the last step shows the episode that ended in it.

        Returns:
            With `render_mode="ansi"`, one string with ANSI codes per row. With `"html"`, one
            fragment of HTML per row. With `"rgb_array"`, the pixels of each row, shape (height,
            width, 3), uint8; the shape is always the same.
        """
        if self.render_mode is None:
            gym.logger.warn('render() needs gym.make_vec(..., render_mode="ansi") or "rgb_array"')
            return None
        shows_last = self._last_step.finished | self._ended
        episodes = [
            self._last_episodes[row] if shows_last[row] else self._prompt_and_completion(row)
            for row in range(self.num_envs)
        ]
        return tuple(self._rendered(*episode) for episode in episodes)

    def _no_step(self) -> LastStep:
        nothing = np.zeros(self.num_envs, dtype=np.bool_)
        return LastStep(np.full(self.num_envs, -1, dtype=np.int64), nothing, None)

    def _row_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str | bytes):
            first = check_whole_number("seed", seed, 0)
            return [first + row for row in range(self.num_envs)]
        is_table = isinstance(seed, np.ndarray) and seed.ndim != 1
        if is_table or len(seed) != self.num_envs:
            raise InvalidArgumentError(
                "seed", seed, f"a list of seeds must have one per row, that is {self.num_envs}"
            )
        return [
            None if one is None else check_whole_number(f"seed[{row}]", one, 0)
            for row, one in enumerate(seed)
        ]

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

    def _start(
        self, rows: np.ndarray, infos: dict[str, Any], options: dict[str, Any] | None = None
    ) -> None:
        """Start new episodes in some rows, bool, shape (num_envs,), and tell their budgets."""
        for row in np.flatnonzero(rows).tolist():
            generator = self._generators[row]
            if generator is None:
                generator = self._generators[row] = seeding.np_random()[0]
            prompt, self._budgets[row] = self.task.draw(generator, options)
            self._input_ids[row], self._attention_mask[row] = self.task.padded(prompt)
            self._prompt_lengths[row] = self._lengths[row] = len(prompt)
        self._ended[rows] = False
        put(infos, "token_budget", self._budgets[rows], rows)

    def _append(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Append tokens to some rows, bool, shape (num_envs,); returns those that it finishes."""
        at = np.flatnonzero(rows)
        columns = self._lengths[at]
        self._input_ids[at, columns] = tokens[at]
        self._attention_mask[at, columns] = 1
        self._lengths[at] += 1
        is_full = self._lengths - self._prompt_lengths == self._budgets
        finished = rows & (is_full | (tokens == self.task.eos_token_id))
        self._ended |= finished
        return finished

    def _completions_of(self, rows: np.ndarray | slice) -> Completions:
        """The texts of some rows, bool, shape (num_envs,), or all of them."""
        longest = self._lengths[rows].max()
        attention_mask = self._attention_mask[rows, :longest] != 0
        is_generated = np.arange(longest) >= self._prompt_lengths[rows, None]
        return Completions(
            torch.from_numpy(self._input_ids[rows, :longest].copy()),
            torch.from_numpy(attention_mask),
            torch.from_numpy(attention_mask & is_generated),
        )

    def _put_final(
        self, infos: dict[str, Any], final: dict[str, np.ndarray], finished: np.ndarray
    ) -> None:
        """Put aside the last observations and infos of rows that are about to restart."""
        inner: dict[str, Any] = {}
        for name, values in final.items():
            put(inner, name, values, finished)
        self._put_action_masks(inner, finished)
        infos["final_info"], infos["_final_info"] = inner, finished.copy()
        last = self._observation()
        observations = np.empty(int(finished.sum()), dtype=np.object_)
        for i, row in enumerate(np.flatnonzero(finished).tolist()):
            observations[i] = {name: values[row] for name, values in last.items()}
        put(infos, "final_obs", observations, finished)

    def _keep_finished(self, finished: np.ndarray, scored: ScoredCompletions) -> None:
        """Keep finished episodes with their credit for ``render``; their rows may restart."""
        scores, credit = scored.score.tolist(), self.rendered_credit(scored)
        for i, row in enumerate(np.flatnonzero(finished).tolist()):
            shares = credit[i][scored.completion_mask[i]].tolist()
            self._last_episodes[row] = (*self._prompt_and_completion(row), shares, scores[i])

    def _prompt_and_completion(self, row: int) -> tuple[list[int], list[int]]:
        start, end = self._prompt_lengths[row], self._lengths[row]
        return self._input_ids[row, :start].tolist(), self._input_ids[row, start:end].tolist()

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "input_ids": self._input_ids.copy(),
            "attention_mask": self._attention_mask.copy(),
        }

    def _put_action_masks(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        """Tell which tokens are legal now in some rows, bool, shape (num_envs,)."""
        if self.action_mask_in_info and rows.any():
            num_new_tokens = (self._lengths - self._prompt_lengths)[rows]
            masks = self.task.action_masks(num_new_tokens)
            put(infos, "action_mask", masks.view(np.int8), rows)
