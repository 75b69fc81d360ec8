"""Floating-point operations of a language model, counted by formula.

A multiplication and an addition count 2. For B sequences of T tokens that are fed, of which S
columns are read out, a body of P weights that multiply (all matrices but the embeddings), L layers
of attention of width A (heads times their size), hidden states of width d and a vocabulary of V::

    forward    2·P·B·T  +  4·L·A·B·T²  +  2·d·(V + 1)·B·S
    update     3 · forward

The first term is the linear layers. The second is queries times keys and weights times values. The
third is the language model's head, tied or not, and the value's, on the columns that are read out.
The backward pass does each product twice, once for either factor. All T² pairs count, although
causal attention needs only half of them: the usual convention (Chowdhery et al. 2022, arXiv
2204.02311, appendix B). Norms, activations, softmax, losses and the optimizer are overhead and
count nothing.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

__all__ = ["forward_operations", "products_of", "update_operations"]


def forward_operations(
    model: PreTrainedModel, batch: int, fed: int, read_out: int, pairs: float = 1.0
) -> float:
    """Operations of a forward pass.

    Args:
        model: A causal language model.
        batch: Number of sequences.
        fed: Tokens of each.
        read_out: Columns of each that the heads are applied to.
        pairs: Share of the pairs of tokens that attention multiplies.
    """
    config = model.config
    head_size = getattr(config, "head_dim", None)
    head_size = head_size or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_size
    return (
        2 * _body_weights(model) * batch * fed
        + 4 * config.num_hidden_layers * width * batch * fed**2 * pairs
        + 2 * config.hidden_size * (config.vocab_size + 1) * batch * read_out
    )


def update_operations(model: PreTrainedModel, batch: int, fed: int, read_out: int) -> float:
    """Operations of a forward and a backward pass; see :func:`forward_operations`."""
    return 3 * forward_operations(model, batch, fed, read_out)


def _body_weights(model: PreTrainedModel) -> int:
    """How many weights multiply in the model without its head."""
    linear = (nn.Linear, Conv1D)
    return sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, linear))


def products_of(model: PreTrainedModel, fed: int, read_out: int) -> list[tuple[int, int, int]]:
    """The matrix products of the layers and of the head: rows, inner size, columns.

    The head is cut to 4,096 tokens: with a larger vocabulary it takes as long as many other
    products, and is never the fastest one.

    Args:
        model: A causal language model.
        fed: Tokens of all sequences together.
        read_out: Columns of all sequences together that the head is applied to.
    """
    shapes = set()
    for module in model.base_model.modules():
        if isinstance(module, nn.Linear):
            shapes.add((fed, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            shapes.add((fed, module.weight.shape[0], module.weight.shape[1]))
    head = (read_out, model.config.hidden_size, min(model.config.vocab_size, 4096))
    return [*sorted(shapes), head]
