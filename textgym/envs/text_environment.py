"""What the single and the batched environment have in common, and what wrappers may read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from textgym.credit import AttentionCredit, CreditAssigner, SparseCredit
from textgym.envs.arguments import TextGenerationArguments
from textgym.envs.task import TextGenerationTask
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, Readout, RewardModel, ScoredCompletions
from textgym.models.checks import check_supports
from textgym.rendering import (
    FRAME_GROUND,
    caption_text,
    credit_text,
    draw_frame,
    episode_html,
    frame_lines,
    to_ansi,
)

__all__ = ["LastStep", "TextEnvironment"]


class LastStep(NamedTuple):
    """What the last step did to the texts; after a reset, nothing.

    Attributes:
        tokens: The token that each text got, int64, shape (num_envs,); -1 where it got none.
        finished: The texts that the step finished, bool, shape (num_envs,).
        scored: These texts, one row for each, with their scores and read-outs; None if the step
            finished none.
    """

    tokens: np.ndarray
    finished: np.ndarray
    scored: ScoredCompletions | None


class TextEnvironment:
    """A text environment, single or batched.

    Wrappers find it as ``env.unwrapped``, whatever is stacked in between. A wrapper of your own may
    read ``task``, ``completions``, ``ended`` and ``last_step``, and call :meth:`request_readouts`.
    A single environment shows its text as a batch of one.

    Attributes:
        task_class: The class of the task. A subclass with other rules sets its own here.
        task: The rules: tokenizer, reward model, legal actions.
        rendered_credit: The credit that ``render`` shows: ABC, or the score on the last token where
            the reward model has no attention. Credit wrappers set their own assigner.
    """

    task_class: ClassVar[type[TextGenerationTask]] = TextGenerationTask
    task: TextGenerationTask
    rendered_credit: CreditAssigner
    metadata: dict[str, Any]
    render_mode: str | None
    action_mask_in_info: bool
    _readouts: frozenset[Readout]

    def _set_up(self, arguments: TextGenerationArguments) -> None:
        """Check the render mode, make the task, and set what both kinds of environment have."""
        mode, modes = arguments.render_mode, self.metadata["render_modes"]
        if mode not in (None, *modes):
            quoted = '", "'.join(modes)
            raise InvalidArgumentError("render_mode", mode, f'choose "{quoted}" or None')
        self.task = self.task_class(arguments)
        self.render_mode = mode
        self.action_mask_in_info = arguments.action_mask_in_info
        self.rendered_credit = AttentionCredit()
        self._readouts = frozenset()
        if mode is not None:
            try:
                self.request_readouts(self.rendered_credit.readouts)
            except InvalidArgumentError:  # There is no attention, or none that can be trusted.
                self.rendered_credit = SparseCredit()

    @property
    @abstractmethod
    def completions(self) -> Completions:
        """The texts so far, padded on the right; a text that was just reset has no completion."""

    @property
    @abstractmethod
    def ended(self) -> np.ndarray:
        """Texts whose episode has ended and not been reset, bool, shape (num_envs,)."""

    @property
    @abstractmethod
    def last_step(self) -> LastStep:
        """What the last step did.

        It names the tokens even where actions mean something else further up the stack.
        """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of observations and actions."""
        return self.task.tokenizer

    @property
    def reward_model(self) -> RewardModel:
        """The reward model."""
        return self.task.reward_model

    @property
    def min_new_tokens(self) -> int:
        """Smallest token budget."""
        return self.task.min_new_tokens

    @property
    def max_new_tokens(self) -> int:
        """Largest token budget."""
        return self.task.max_new_tokens

    @property
    def max_length(self) -> int:
        """Length of the observation arrays."""
        return self.task.max_length

    def _rendered(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        credit: Sequence[float] | None = None,
        score: float | None = None,
    ) -> str | np.ndarray:
        """An episode in the form of the render mode; with credit and score once it has ended."""
        prompt, pieces = self.task.decode(prompt_ids), self.task.pieces(completion_ids)
        if self.render_mode == "html":
            return episode_html(prompt, pieces, credit, score)
        if self.render_mode == "rgb_array":
            caption = "" if score is None else caption_text(score, credit, FRAME_GROUND)
            text = credit_text(prompt, pieces, credit, ground=FRAME_GROUND)
            return draw_frame(text, frame_lines(self.max_length), caption)
        text = credit_text(prompt, pieces, credit)
        if score is not None:
            text.append("\n").append(caption_text(score, credit))
        return to_ansi(text)

    def request_readouts(self, readouts: Collection[Readout]) -> None:
        """Have these read-outs computed whenever completions are scored.

        Args:
            readouts: See :mod:`textgym.models.readouts`.

        Raises:
            InvalidArgumentError: If the reward model cannot give one of them.
        """
        check_supports(self.reward_model, readouts)
        self._readouts |= frozenset(readouts)
