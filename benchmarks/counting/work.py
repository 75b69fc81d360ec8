"""How much an iteration has to do, and the choices that decide what it costs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Choices", "Work"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """The episodes of an iteration: prompts of one length, completions of one length.

    Attributes:
        episodes: E, ``episodes_per_iteration``, all of which are played side by side.
        prompt: P, tokens.
        steps: S, tokens of each completion.
        epochs: ``num_epochs``.
        minibatch: ``minibatch_size``.
        is_padded: Whether texts have different lengths in truth, so that attention needs a mask.
            The library then repeats keys and values for every head of queries.
    """

    episodes: int
    prompt: int
    steps: int
    epochs: int = 4
    minibatch: int = 4
    is_padded: bool = False

    @property
    def fed(self) -> int:
        """Tokens of each text that a forward pass reads: the last one predicts nothing."""
        return self.prompt + self.steps - 1


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How the policy is trained.

    Attributes:
        rank: r of LoRA's adapters; 0 trains all weights.
        is_bfloat16: ``dtype="bfloat16"``, and with LoRA also frozen weights in bfloat16.
        recomputes: ``gradient_checkpointing``.
        is_on_cpu: A CPU keeps float32 in attention over short texts, and goes through logits in
            smaller pieces.
    """

    rank: int = 0
    is_bfloat16: bool = False
    recomputes: bool = False
    is_on_cpu: bool = True

    @property
    def size(self) -> int:
        """Bytes of a number in the dtype that is computed in."""
        return 2 if self.is_bfloat16 else 4
