"""The decision process: what the single and the batched environment have in common."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.credit import AttentionCredit, CreditAssigner
from textgym.errors import InvalidArgumentError
from textgym.models import (
    Completions,
    Readout,
    RewardModel,
    ScoredCompletions,
    load_reward_model,
    load_tokenizer,
)
from textgym.prompts import PromptSource, encode_prompts, load_prompts
from textgym.rendering import credit_text, to_ansi, token_pieces

__all__ = ["TextEnvironment", "TextGenerationTask"]


class TextGenerationTask:
    """Prompts, token budgets, spaces, scoring and infos of token-by-token text generation.

    Args:
        tokenizer: See :class:`textgym.envs.TextGenerationEnv`, as for all the others.
        reward_model: As there.
        prompts: As there.
        prompt_column: As there.
        min_new_tokens: As there.
        max_new_tokens: As there.
        normalize_score: As there.
        device: As there.
        dtype: As there.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        reward_model: str | Path | PreTrainedModel | RewardModel,
        prompts: str | Path | Sequence[str] | PromptSource | Any,
        prompt_column: str | None,
        min_new_tokens: int,
        max_new_tokens: int,
        normalize_score: bool,
        device: str | torch.device,
        dtype: str | torch.dtype | None,
    ) -> None:
        for name, value in (("min_new_tokens", min_new_tokens), ("max_new_tokens", max_new_tokens)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise InvalidArgumentError(name, value, "must be a whole number of at least 1")
        if min_new_tokens > max_new_tokens:
            raise InvalidArgumentError(
                "min_new_tokens",
                min_new_tokens,
                f"must not be greater than max_new_tokens={max_new_tokens}",
            )
        self.min_new_tokens, self.max_new_tokens = int(min_new_tokens), int(max_new_tokens)
        self.tokenizer = load_tokenizer(tokenizer)
        self.reward_model = load_reward_model(
            reward_model, self.tokenizer, normalize_score, device, dtype
        )
        self.prompt_source = load_prompts(prompts, self.tokenizer, prompt_column)
        self.vocab_size = len(self.tokenizer)
        self.eos_token_id = int(self.tokenizer.eos_token_id)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = 0 if pad is None else int(pad)  # It is masked, so any id will do.
        self.max_length = self.prompt_source.max_length + self.max_new_tokens
        self._check_reward_model()

    def _check_reward_model(self) -> None:
        theirs = getattr(self.reward_model, "tokenizer", None)
        if theirs is not None and theirs.get_vocab() != self.tokenizer.get_vocab():
            raise InvalidArgumentError(
                "reward_model",
                getattr(theirs, "name_or_path", type(theirs).__name__),
                "its tokenizer differs from the environment's, and token ids pass straight "
                "through; give both the same tokenizer",
            )
        limit = getattr(self.reward_model, "max_length", None)
        if limit is not None and self.max_length > limit:
            raise InvalidArgumentError(
                "max_new_tokens",
                self.max_new_tokens,
                f"with prompts of up to {self.prompt_source.max_length} tokens, texts may have "
                f"{self.max_length} tokens, and the reward model takes {limit}; use fewer new "
                "tokens or shorter prompts",
            )

    @property
    def observation_space(self) -> spaces.Dict:
        """Token ids and validity mask, each of shape (max_length,)."""
        shape = (self.max_length,)
        return spaces.Dict(
            {
                "input_ids": spaces.Box(0, self.vocab_size - 1, shape, np.int64),
                "attention_mask": spaces.Box(0, 1, shape, np.int8),
            }
        )

    @property
    def action_space(self) -> spaces.Discrete:
        """One action per token of the vocabulary."""
        return spaces.Discrete(self.vocab_size)

    def padded(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What an observation shows of a text.

        Args:
            ids: At most max_length token ids.

        Returns:
            Token ids, int64, and validity mask, int8, both of shape (max_length,).
        """
        input_ids = np.full(self.max_length, self.pad_token_id, dtype=np.int64)
        input_ids[: len(ids)] = ids
        attention_mask = np.arange(self.max_length) < len(ids)
        return input_ids, attention_mask.astype(np.int8)

    def draw(
        self, rng: np.random.Generator, options: dict[str, Any] | None = None
    ) -> tuple[list[int], int]:
        """Draw a prompt and a budget of new tokens.

        Args:
            rng: The only source of randomness. It is used in the same way whatever the options,
                so that they do not change the episodes that follow.
            options: ``prompt`` (str) and ``max_new_tokens`` (int) replace what is drawn.

        Returns:
            The prompt's token ids, and the budget.

        Raises:
            InvalidArgumentError: If an option cannot be used.
        """
        prompt = list(self.prompt_source.sample(rng))
        budget = int(rng.integers(self.min_new_tokens, self.max_new_tokens, endpoint=True))
        options = options or {}
        if "prompt" in options:
            prompt = encode_prompts([options["prompt"]], self.tokenizer)[0]
            if not 1 <= len(prompt) <= self.prompt_source.max_length:
                raise InvalidArgumentError(
                    'options["prompt"]',
                    options["prompt"],
                    f"it has {len(prompt)} tokens; this environment has room for 1 to "
                    f"{self.prompt_source.max_length}",
                )
        if "max_new_tokens" in options:
            budget = options["max_new_tokens"]
            if not isinstance(budget, (int, np.integer)) or not 1 <= budget <= self.max_new_tokens:
                raise InvalidArgumentError(
                    'options["max_new_tokens"]',
                    budget,
                    f"must be a whole number from 1 to {self.max_new_tokens}",
                )
        return prompt, int(budget)

    def action_mask(self, num_new_tokens: int) -> np.ndarray:
        """Which tokens are legal after ``num_new_tokens`` generated ones, (vocab_size,), int8."""
        return self.action_masks(np.array([num_new_tokens]))[0].astype(np.int8)

    def action_masks(self, num_new_tokens: np.ndarray) -> np.ndarray:
        """Which tokens are legal in some states.

        Args:
            num_new_tokens: How many tokens were generated in each, shape (batch,).

        Returns:
            bool, shape (batch, vocab_size).
        """
        masks = np.ones((len(num_new_tokens), self.vocab_size), dtype=np.bool_)
        masks[:, self.eos_token_id] = num_new_tokens >= self.min_new_tokens
        return masks

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        readouts: frozenset[Readout],
    ) -> ScoredCompletions:
        """Score finished completions in one call of the reward model."""
        batch = Completions.from_lists(prompt_ids, completion_ids, self.pad_token_id)
        return self.reward_model.read(batch, readouts)

    def final_infos(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        budgets: Sequence[int],
        scored: ScoredCompletions,
    ) -> list[dict[str, Any]]:
        """The infos that the ends of some episodes add, one for each.

        Args:
            prompt_ids: Their prompts.
            completion_ids: Their completions.
            budgets: Most new tokens that they could have had.
            scored: What :meth:`score` returned for them.
        """
        return [
            {
                "prompt": self.decode(prompt),
                "completion": self.decode(completion),
                "score": score,
                "prompt_tokens": len(prompt),
                "completion_tokens": len(completion),
            }
            for prompt, completion, score in zip(
                prompt_ids, completion_ids, scored.score.tolist(), strict=True
            )
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, special ones shown."""
        return token_pieces(self.tokenizer, ids)

    def render(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        credit: Sequence[float] | None = None,
        score: float | None = None,
    ) -> str:
        """An episode as text with ANSI codes; with credit and score once it has ended."""
        text = credit_text(self.decode(prompt_ids), self.pieces(completion_ids), credit)
        if score is not None:
            text.append(f"  (score {score:+.2f})", style="not dim")
        return to_ansi(text)


class TextEnvironment:
    """What the single and the batched environment expose of their task.

    Attributes:
        task_class: What builds the task; a subclass with rules of its own puts its own here.
        task: The decision process.
        rendered_credit: What ``render`` shows; a credit wrapper puts its own assigner here.
        scored: The completions that the last step finished, with their read-outs; None if it
            finished none.
        tokens_taken: The token that the last step appended to each text, int64, -1 where it
            appended none; shape (num_envs,), or (1,) in the single environment. Wrappers that
            speak about tokens find them here whatever the actions above stand for.
    """

    task_class: ClassVar[type[TextGenerationTask]] = TextGenerationTask
    task: TextGenerationTask
    rendered_credit: CreditAssigner
    scored: ScoredCompletions | None
    tokens_taken: np.ndarray
    _readouts: frozenset[Readout]

    def _set_task(self, task: TextGenerationTask, renders: bool) -> None:
        self.task = task
        self.rendered_credit = AttentionCredit()
        self.scored = None
        self._readouts = self.rendered_credit.readouts if renders else frozenset()

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

    def request_readouts(self, readouts: Collection[Readout]) -> None:
        """Have these read-outs computed whenever completions are scored.

        Args:
            readouts: See :mod:`textgym.models.readouts`.

        Raises:
            InvalidArgumentError: If the reward model cannot give one of them.
        """
        self.reward_model.check_readouts(readouts)
        self._readouts |= frozenset(readouts)
