"""Scores texts, and gives the credit of several methods to their tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textgym.cli.texts import GivenText
from textgym.errors import InvalidArgumentError, NumericalError
from textgym.rendering import CreditedText, token_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textgym.credit import CreditAssigner
    from textgym.models import ScoredCompletions

__all__ = ["Crediting", "ScoredText"]

_BATCH = 16
"""Texts that are read together."""


@dataclass(frozen=True)
class ScoredText:
    """A text with its credit, and the read-outs that it came from.

    Attributes:
        credited: Text, score and credit.
        scored: The batch of completions that it was scored in.
        row: Its row in the batch.
    """

    credited: CreditedText
    scored: ScoredCompletions
    row: int


class Crediting:
    """A reward model with the methods that read it.

    Args:
        reward_model: As :func:`textgym.models.load_reward_model` takes it.
        tokenizer: Name of the tokenizer of the tokens that get credit; None for the reward model's,
            or else the embedded one.
        methods: Credit assigners by name.
        device: Where the reward model runs.

    Raises:
        InvalidArgumentError: If the reward model cannot give what a method reads.
    """

    def __init__(
        self,
        reward_model: str,
        tokenizer: str | None,
        methods: Mapping[str, CreditAssigner],
        device: str,
    ) -> None:
        from textgym.models import RewardModel, TextRewardModel, load_reward_model, load_tokenizer
        from textgym.models.bridge import reading_tokens_of

        own = None if tokenizer is None else load_tokenizer(tokenizer)
        loaded = load_reward_model(reward_model, own or load_tokenizer("embedded"), device=device)
        self.tokenizer: PreTrainedTokenizerBase = (
            own or getattr(loaded, "tokenizer", None) or load_tokenizer("embedded")
        )
        self.reward_model: Any = reading_tokens_of(self.tokenizer, loaded)
        if self.reward_model is loaded and isinstance(loaded, RewardModel) and not loaded.is_causal:
            self.reward_model = TextRewardModel(loaded, self.tokenizer)  # with [CLS] and [SEP]
        self.methods = methods
        for name, assigner in methods.items():
            if assigner.needs_causal_reward_model and not self.reward_model.is_causal:
                raise InvalidArgumentError(
                    "reward_model", reward_model, f"{name} credit needs a decoder"
                )
            assigner.check_reward_model(self.reward_model)

    def encode(self, given: GivenText, argument: str) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of the text.

        Raises:
            InvalidArgumentError: If the text has no token, or the reward model cannot take as many.
        """
        from textgym.prompts import encode_prompts

        if given.ids is not None:
            return given.ids
        ids = (
            self.tokenizer(given.text, add_special_tokens=False)["input_ids"] if given.text else []
        )
        ids = list(ids)
        if given.prompt:
            prompt_ids = encode_prompts([given.prompt], self.tokenizer)[0]
        elif self.tokenizer.bos_token_id is not None:
            prompt_ids = [self.tokenizer.bos_token_id]
        else:
            prompt_ids, ids = ids[:1], ids[1:]
        if not ids:
            raise InvalidArgumentError(argument, given.text, "it has no token to give credit to")
        limit, number = getattr(self.reward_model, "max_length", None), len(prompt_ids) + len(ids)
        if limit is not None and number > limit:
            remedy = f"with the prompt it has {number} tokens; the reward model takes {limit}"
            raise InvalidArgumentError(argument, given.text, remedy)
        return prompt_ids, ids

    def read(self, encoded: Sequence[tuple[list[int], list[int]]]) -> Iterator[ScoredText]:
        """Score texts and give credit to their tokens, batch by batch.

        Args:
            encoded: What :meth:`encode` returns, for each text.

        Raises:
            NumericalError: If a score or a credit is NaN or infinite.
        """
        from textgym.models import Completions

        readouts = frozenset().union(*(one.readouts for one in self.methods.values()))
        for start in range(0, len(encoded), _BATCH):
            prompts, texts = zip(*encoded[start : start + _BATCH], strict=True)
            batch = Completions.from_lists(prompts, texts)
            scored = self.reward_model.read(batch, readouts)
            credit = {name: assigner(scored) for name, assigner in self.methods.items()}
            for row, (prompt_ids, ids) in enumerate(zip(prompts, texts, strict=True)):
                mask = scored.completion_mask[row]
                credited = CreditedText(
                    prompt=str(self.tokenizer.decode(prompt_ids, skip_special_tokens=True)),
                    pieces=token_pieces(self.tokenizer, ids),
                    score=scored.score[row].item(),
                    credit={name: values[row][mask].tolist() for name, values in credit.items()},
                )
                _check_finite(credited)
                yield ScoredText(credited, scored, row)


def _check_finite(text: CreditedText) -> None:
    numbers = {"score": [text.score]} | {f"{name} credit": x for name, x in text.credit.items()}
    for quantity, values in numbers.items():
        for value in values:
            if not math.isfinite(value):
                where = f"of the text {''.join(text.pieces)!r}"
                raise NumericalError(quantity, value, where, "find out why the reward gives it")
