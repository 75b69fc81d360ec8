"""Gradient checkpointing: layers keep their inputs alone, and are computed again for the backward.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. An update then
holds one hidden state per layer and the activations of a single layer, and costs one more forward
pass.

The library's own switch works in training mode only, and would hook into the embeddings. A policy
stays in evaluation mode, so that dropout is off, and its rollouts read a model without hooks. So
the layers that the library would checkpoint are wrapped here, and only while a forward pass with
gradients runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint

from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Recomputation"]


class Recomputation:
    """A context in which the layers of a model keep nothing but their inputs for the backward.

    Gradients are those of the plain forward pass. The backward may run after the context has ended.

    Args:
        model: A language model, with or without adapters; nothing in it is changed outside of the
            context.
        surroundings: What the forward pass is run in, beside autocast, such as a choice of the
            attention kernel. Layers are computed again in it, after the forward pass has left it.

    Raises:
        InvalidArgumentError: If the model does not tell which of its parts are layers.
    """

    def __init__(self, model: PreTrainedModel, surroundings: AbstractContextManager[None]) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer  # Imported here: slow.

        self._surroundings = surroundings
        self._replaced: list[Any] = []
        self._layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not self._layers:
            raise InvalidArgumentError(
                "gradient_checkpointing",
                True,
                f"{type(model).__name__} has no layers that can be computed again: use False.",
            )

    def __enter__(self) -> None:
        # A layer may have a forward of its own beside that of its class.
        self._replaced = [vars(layer).get("forward") for layer in self._layers]
        for layer in self._layers:
            # Nothing is drawn at random in evaluation mode, so no generator has to be restored.
            layer.forward = partial(  # type: ignore[method-assign]
                checkpoint,
                layer.forward,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=self._contexts,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer, replaced in zip(self._layers, self._replaced, strict=True):
            del layer.forward
            if replaced is not None:
                layer.forward = replaced

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the first computation, which the caller surrounds, and of the second."""
        return nullcontext(), self._surroundings
