"""The decision process: prompts, token budgets, legal actions, scores and infos."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces

from textgym.checks import check_flag, check_text, check_whole_number, did_you_mean
from textgym.envs.arguments import TextGenerationArguments
from textgym.errors import InvalidArgumentError
from textgym.models import (
    Completions,
    Readout,
    ScoredCompletions,
    load_reward_model,
    load_tokenizer,
)
from textgym.models.bridge import reading_tokens_of
from textgym.prompts import encode_prompts, load_prompts
from textgym.rendering import token_pieces

__all__ = ["TextGenerationTask", "check_actions", "check_options", "token_lists"]


_imported_in = os.getpid()


def _use_one_thread_if_forked() -> None:
    """Keep torch from waiting for threads that a forked process does not have.

    A fork copies no threads, but what torch knows about its pool of them. The next parallel
    operation would then wait for ever, as in workers of ``AsyncVectorEnv(context="fork")``. Torch
    may have used threads before the fork even if textgym was imported after it.
    """
    # "spawn" and "forkserver" start an interpreter with a program of their own.
    is_fresh = any("from multiprocessing." in word for word in sys.orig_argv)
    is_worker = multiprocessing.parent_process() is not None
    if os.getpid() != _imported_in or (is_worker and not is_fresh):
        torch.set_num_threads(1)


def token_lists(completions: Completions) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each prompt and of each completion, for texts padded on the right."""
    prompts, generated = [], []
    ends = completions.attention_mask.sum(1).tolist()
    lengths = completions.completion_mask.sum(1).tolist()
    for ids, end, length in zip(completions.input_ids.tolist(), ends, lengths, strict=True):
        prompts.append(ids[: end - length])
        generated.append(ids[end - length : end])
    return prompts, generated


def check_options(options: Any, known: Collection[str]) -> dict[str, Any]:
    """Return the options of ``reset`` as a dict of their own.

    Args:
        options: What the user passed; None for none.
        known: Names of the options that there are.

    Raises:
        InvalidArgumentError: If they are no dict, or one of them is unknown.
    """
    if not isinstance(options, Mapping | None):
        raise InvalidArgumentError(
            "options", options, f"must be a dict of options: {', '.join(known)}"
        )
    for name, value in (options or {}).items():
        if name not in known:
            raise InvalidArgumentError(
                f"options[{name!r}]", value, f"there is no such option; {did_you_mean(name, known)}"
            )
    return dict(options or {})


def check_actions(actions: Any, num_envs: int, num_actions: int, what: str) -> np.ndarray:
    """Return the actions of a batch as an array.

    Args:
        actions: What the user passed.
        num_envs: Number of rows.
        num_actions: Number of actions of one row.
        what: What the actions are, for the error.

    Returns:
        Whole numbers, shape (num_envs,).

    Raises:
        InvalidArgumentError: If they are not whole numbers from 0 to num_actions - 1, one per row.
    """
    try:
        given = np.asarray(actions)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors of other devices
        given = np.zeros(0)
    if (
        given.shape != (num_envs,)
        or given.dtype.kind not in "iu"
        or given.min() < 0
        or given.max() >= num_actions
    ):
        raise InvalidArgumentError(
            "actions", actions, f"must be {num_envs} {what} from 0 to {num_actions - 1}"
        )
    return given


class TextGenerationTask:
    """The rules of token-by-token text generation, for one episode or many.

    An environment with rules of its own overrides :meth:`score` and :meth:`final_infos`.

    Attributes:
        option_names: The options that ``reset`` takes.

    Args:
        arguments: The arguments of the environment.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    option_names: ClassVar[tuple[str, ...]] = ("prompt", "max_new_tokens")

    def __init__(self, arguments: TextGenerationArguments) -> None:
        _use_one_thread_if_forked()
        self.max_new_tokens = check_whole_number(
            "max_new_tokens", arguments.max_new_tokens, 1, 2**31 - 1
        )
        self.min_new_tokens = check_whole_number("min_new_tokens", arguments.min_new_tokens, 1)
        if self.min_new_tokens > self.max_new_tokens:
            raise InvalidArgumentError(
                "min_new_tokens",
                self.min_new_tokens,
                f"must not be greater than max_new_tokens={self.max_new_tokens}",
            )
        check_flag("action_mask_in_info", arguments.action_mask_in_info)
        self.tokenizer = load_tokenizer(arguments.tokenizer)
        self.prompt_source = load_prompts(
            arguments.prompts, self.tokenizer, arguments.prompt_column
        )
        self.reward_model = reading_tokens_of(
            self.tokenizer,
            load_reward_model(
                arguments.reward_model,
                self.tokenizer,
                arguments.normalize_score,
                arguments.device,
                arguments.dtype,
            ),
            self.prompt_source.texts,
        )
        self.vocab_size = len(self.tokenizer)
        self.eos_token_id = int(self.tokenizer.eos_token_id)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = 0 if pad is None else int(pad)  # It is masked, so any id will do.
        self.max_length = self.prompt_source.max_length + self.max_new_tokens
        self._check_reward_model()

    def _check_reward_model(self) -> None:
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
        attention_mask = np.zeros(self.max_length, dtype=np.int8)
        attention_mask[: len(ids)] = 1
        return input_ids, attention_mask

    def draw(
        self, rng: np.random.Generator, options: dict[str, Any] | None = None
    ) -> tuple[list[int], int]:
        """Draw a prompt and a budget of new tokens.

        Args:
            rng: The only source of randomness. It is used in the same way whatever the options,
                so that they do not change the episodes that follow.
            options: ``prompt`` (str) and ``max_new_tokens`` (int) replace what is drawn. A task
                with options of its own adds their names to :attr:`option_names`.

        Returns:
            The prompt's token ids, and the budget.

        Raises:
            InvalidArgumentError: If an option cannot be used.
        """
        prompt = list(self.prompt_source.sample(rng))
        budget = int(rng.integers(self.min_new_tokens, self.max_new_tokens, endpoint=True))
        options = check_options(options, self.option_names)
        if "prompt" in options:
            text = check_text(
                'options["prompt"]', options["prompt"], "must be the text of a prompt"
            )
            prompt = encode_prompts([text], self.tokenizer)[0]
            if not 1 <= len(prompt) <= self.prompt_source.max_length:
                raise InvalidArgumentError(
                    'options["prompt"]',
                    options["prompt"],
                    f"it has {len(prompt)} tokens; this environment has room for 1 to "
                    f"{self.prompt_source.max_length}",
                )
        if "max_new_tokens" in options:
            budget = check_whole_number(
                'options["max_new_tokens"]', options["max_new_tokens"], 1, self.max_new_tokens
            )
        return prompt, budget

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

    def score(self, completions: Completions, readouts: frozenset[Readout]) -> ScoredCompletions:
        """Score finished completions in one call of the reward model."""
        return self.reward_model.read(completions, readouts)

    def final_infos(
        self, completions: Completions, budgets: np.ndarray, scored: ScoredCompletions
    ) -> dict[str, np.ndarray]:
        """What the ends of some episodes add to the infos.

        Args:
            completions: The finished texts.
            budgets: The most new tokens that each could have had, shape (batch,), int64.
            scored: What :meth:`score` returned for them.

        Returns:
            For each key an array with one entry per text, shape (batch, ...).
        """
        prompts, generated = token_lists(completions)
        return {
            "prompt": np.array([self.decode(ids) for ids in prompts], dtype=object),
            "completion": np.array([self.decode(ids) for ids in generated], dtype=object),
            "score": np.array(scored.score.tolist()),
            "prompt_tokens": np.array([len(ids) for ids in prompts]),
            "completion_tokens": np.array([len(ids) for ids in generated]),
        }

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, special ones shown."""
        return token_pieces(self.tokenizer, ids)
