"""A decoder's next token with few operations, since at small sizes each of them costs time.

The library's forward pass takes some 40 operations per layer to read one token, and prepares masks,
positions and outputs anew at every call. For small models that costs far more than the arithmetic.
Here queries, keys and values are one product, and so are the two inputs of a gated feed-forward
layer. Rotary tables are looked up once per token, the mask is added within the product of queries
and keys, and keys and values stay in float32 on CPUs, where attention is computed in it.

Two kinds of layer are known: that of Llama, Mistral, Qwen2 and Qwen3, and that of GPT-2. Models of
other kinds, and those that something has been attached to (hooks, adapters, quantised weights,
dropout in training), are left to the library. So are models of more than a billion parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, silu
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from textgym.models.incremental.cache import GrowingLayer
from textgym.models.incremental.output import Output
from textgym.models.recorder import RecordedAttention

__all__ = ["LeanDecoder", "weights_version"]

_GATED = ("llama", "mistral", "qwen2", "qwen3")
_OWN_MODULES = (
    "torch.nn.modules.",
    "transformers.activations",
    "transformers.models.",
    "transformers.pytorch_utils",
)
"""Where the classes of an unaltered model come from."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST = 1_000_000_000
"""Parameters. Beyond, time goes to reading the weights, and copies of them would be a burden."""
_STATIC_ROPE = ("default", "linear", "llama3")
"""Kinds of rotary embedding whose angle at a position does not depend on the text's length."""
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


class LeanDecoder:
    """Reads the newest token of each text, given the keys and values of those before.

    Its weights are copies, in the dtype that the model computes in.

    Args:
        module: A decoder that :meth:`knows` accepts, with or without a language-model head.
        dtype: What products are computed in.
    """

    def __init__(self, module: PreTrainedModel, dtype: torch.dtype) -> None:
        body: Any = module.base_model
        head = module.get_output_embeddings()
        self.dtype = dtype
        self._head = None if head is None else _Product([head], dtype)
        is_gpt2 = module.config.model_type == "gpt2"
        self._body: _Body = _GPT2(body, dtype) if is_gpt2 else _Gated(body, dtype)

    @staticmethod
    def of(module: PreTrainedModel) -> LeanDecoder | None:
        """The lean form of a model as it is now; None if the library has to read it.

        Readers of one model share it, until its weights change or :meth:`discard` is called.

        Args:
            module: A decoder, with or without a language-model head.
        """
        if not LeanDecoder.knows(module):
            return None
        device = module.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        state = dtype or module.dtype, weights_version(module)
        known = _shared.get(module)
        if known is None or known[0] != state:
            known = _shared[module] = state, LeanDecoder(module, dtype or module.dtype)
        return known[1]

    @staticmethod
    def discard(module: PreTrainedModel) -> None:
        """Forget the copies of a model's weights, and free their memory."""
        _shared.pop(module, None)

    @staticmethod
    def knows(module: PreTrainedModel) -> bool:
        """Whether a model is of a known kind and size, and nothing has been attached to it."""
        config: Any = module.config
        if config.model_type == "gpt2":
            is_known = not config.add_cross_attention
            is_known = is_known and config.activation_function in _ACTIVATIONS
        else:
            is_known = config.model_type in _GATED
            is_known = is_known and config.rope_parameters["rope_type"] in _STATIC_ROPE
            is_known = is_known and config.hidden_act in _ACTIVATIONS
        has_known_head = type(module.get_output_embeddings()) in (nn.Linear, type(None))
        parts, parameters = list(module.modules()), list(module.parameters())
        return (
            is_known
            and has_known_head
            and all(type(part).__module__.startswith(_OWN_MODULES) for part in parts)
            and not any(_is_altered(part) for part in parts)
            and all(type(one) is nn.Parameter for one in parameters)
            and len({(one.device, one.dtype) for one in parameters}) == 1
            and parameters[0].dtype in _DTYPES
            and sum(one.numel() for one in parameters) <= _LARGEST
        )

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are stored in."""
        return torch.float32 if self._body.device.type == "cpu" else self.dtype

    def read(
        self, ids: Tensor, positions: Tensor, mask: Tensor, layers: Sequence[GrowingLayer]
    ) -> Output:
        """Read one token per text, and append its keys and values.

        Args:
            ids: The newest tokens, int64, shape (batch,).
            positions: Their positions, int64, shape (batch,).
            mask: True at the columns of each text, the new one included, shape
                (batch, num_columns).
            layers: Keys and values of the columns before; they get the new one.
        """
        device = self._body.device.type
        with torch.autocast(device, enabled=False):
            hidden, attention = self._body.read(ids, positions, mask, layers, self.cache_dtype)
            logits = None if self._head is None else self._head(hidden)[:, None]
        return Output(hidden[:, None], logits, RecordedAttention.of_newest(attention))


_shared: WeakKeyDictionary[PreTrainedModel, tuple[Any, LeanDecoder]] = WeakKeyDictionary()


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Something that changes when a weight does, or when another tensor takes its place.

    What is written through a weight's ``data`` is not noticed.

    Args:
        module: The module.
    """
    return tuple(
        (one.data_ptr(), 0 if one.is_inference() else one._version) for one in module.parameters()
    )


def _is_altered(part: nn.Module) -> bool:
    """Whether a module does more or less than its class says, or drops out at random."""
    dropout = getattr(part, "attention_dropout", 0.0) or (type(part) is nn.Dropout and part.p)
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    # The library's own hooks, which stay after the first call, only collect hidden states.
    foreign = [one for one in hooks if one.__module__ != "transformers.utils.output_capturing"]
    return bool(foreign or "forward" in vars(part) or (part.training and dropout))


class _Product:
    """x·Wᵀ + b of one or several layers with the same input, their outputs side by side.

    On CPUs the weights are kept in the layout of oneDNN, which multiplies a few rows by them up to
    three times as fast as PyTorch's own call, since that rearranges them every time.
    """

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        weights = [one.weight.T if type(one) is Conv1D else one.weight for one in layers]
        self._weight = torch.cat([one.detach() for one in weights]).to(dtype)
        biases = [one.bias for one in layers if one.bias is not None]
        self._bias = torch.cat([one.detach() for one in biases]).to(dtype) if biases else None
        self._dtype = dtype
        self._is_packed = _can_pack(self._weight)
        if self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype)
        if not self._is_packed:
            return linear(x, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by weights of this device and dtype."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


class _Step(NamedTuple):
    """What all layers share when they read one token per text.

    Attributes:
        bias: By window of the layer, see :func:`_bias`.
        cos: Cosines of the positions, shape (batch, 1, head_dim); unused with learned positions.
        sin: Sines, the first half negative, of the same shape.
    """

    bias: dict[int | None, Tensor]
    cos: Tensor
    sin: Tensor


class _Body(ABC):
    """A decoder's embeddings, layers and last norm.

    Attributes:
        device: Of the weights.
        heads_by_window: Heads of keys and values of the layers that see so many columns.
        layers: First to last.
        norm: The last norm.
    """

    device: torch.device
    heads_by_window: dict[int | None, int]
    layers: Sequence[_GatedLayer | _GPT2Layer]
    norm: Callable[[Tensor], Tensor]

    @abstractmethod
    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The first hidden states, (batch, hidden_size)."""

    def rotation(self, positions: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions below a number of columns; see :class:`_Step`."""
        return positions, positions

    def read(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        kept: Sequence[GrowingLayer],
        dtype: torch.dtype,
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states after the last norm, (batch, hidden_size), and attention by layer."""
        bias = {
            window: _bias(mask, heads, dtype, window)
            for window, heads in self.heads_by_window.items()
        }
        step = _Step(bias, *self.rotation(positions, mask.shape[1]))
        x, attention = self.embed(ids, positions), []
        for layer, cache in zip(self.layers, kept, strict=True):
            x, weights = layer.read(x, step, cache)
            attention.append(weights)
        return self.norm(x), attention


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """softmax(q·kᵀ·scaling + bias)·v for one query per text (Vaswani et al., 2017, equation 1).

    Args:
        query: Shape (batch, num_heads, head_dim).
        keys: Shape (batch, num_key_value_heads, num_columns, head_dim); each serves a group.
        values: Shape (batch, num_key_value_heads, num_columns, head_dim).
        bias: 0 where a text attends, else -inf, shape
            (batch * num_key_value_heads, 1, num_columns).
        scaling: Factor on the products.

    Returns:
        Shape (batch, num_heads * head_dim); and the weights, float32,
        (batch, num_heads, num_columns).
    """
    batch, num_heads, head_dim = query.shape
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    grouped = query.reshape(len(keys), -1, head_dim).to(keys.dtype)
    weights = torch.baddbmm(bias, grouped, keys.mT, alpha=scaling).softmax(-1, torch.float32)
    output = torch.bmm(weights.to(values.dtype), values)
    return output.reshape(batch, -1), weights.view(batch, num_heads, -1)


def _bias(mask: Tensor, num_heads: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """A mask as something to add: 0 or -inf, shape (batch * num_heads, 1, num_columns).

    Args:
        mask: True at the columns of each text, which ends in the last one.
        num_heads: Heads of keys and values.
        dtype: Of the result.
        window: Only so many columns at the end are seen; None for all.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    bias.masked_fill_(~mask, -torch.inf)
    if window is not None:
        bias[:, : max(0, mask.shape[1] - window)] = -torch.inf
    return bias.repeat_interleave(num_heads, dim=0)[:, None]


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """A layer norm, or a root-mean-square norm, as one operation."""
    weight = module.weight.detach()
    if isinstance(module, nn.LayerNorm):
        bias = None if module.bias is None else module.bias.detach()
        return lambda x: layer_norm(x, weight.shape, weight, bias, module.eps)
    return lambda x: rms_norm(x, weight.shape, weight, module.variance_epsilon)


class _Gated(_Body):
    """Llama and its relatives: RMS norms, rotary positions, a gated feed-forward layer."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        self._embeddings: Tensor = body.embed_tokens.weight.detach()
        self.device = self._embeddings.device
        self._rotary = body.rotary_emb
        self._table = self._rotary_table(64)
        self.norm = _norm(body.norm)
        layers = [_GatedLayer(layer, dtype) for layer in body.layers]
        self.layers = layers
        self.heads_by_window = {layer.window: layer.num_key_value_heads for layer in layers}

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self._embeddings[ids]

    def rotation(self, positions: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
        if num_columns > len(self._table[0]):
            self._table = self._rotary_table(2 * num_columns)
        cos, sin = self._table
        return cos[positions], sin[positions]

    def _rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions up to a length, each (length, 1, head_dim).

        The first half of the sines is negative: x·cos + roll(x)·sin is then the rotation.
        """
        positions = torch.arange(length, device=self.device)[None]
        with torch.autocast(self.device.type, enabled=False):
            cos, sin = self._rotary(torch.zeros((), device=self.device), positions)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return cos[0, :, None], sin[0, :, None]


class _GatedLayer:
    """One layer of :class:`_Gated`."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        self.num_key_value_heads = attention.k_proj.out_features // attention.head_dim
        self._num_heads = attention.q_proj.out_features // attention.head_dim
        self.window: int | None = getattr(attention, "sliding_window", None)
        # Mistral's layers leave it to the configuration. Llama's have none, whatever it says.
        if attention.config.model_type == "mistral":
            self.window = attention.config.sliding_window
        self._norm_before = _norm(layer.input_layernorm)
        self._norm_between = _norm(layer.post_attention_layernorm)
        self._qkv = _Product([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self._out = _Product([attention.o_proj], dtype)
        self._gate_and_up = _Product([mlp.gate_proj, mlp.up_proj], dtype)
        self._activation = _ACTIVATIONS[mlp.config.hidden_act]
        self._down = _Product([mlp.down_proj], dtype)
        self._head_norm: Tensor | None = None  # (num_heads of queries and keys, head_dim)
        if hasattr(attention, "q_norm"):
            counts = (self._num_heads, self.num_key_value_heads)
            norms = (attention.q_norm, attention.k_norm)
            self._eps = attention.q_norm.variance_epsilon
            self._head_norm = torch.cat(
                [
                    norm.weight.detach().float().expand(count, -1)
                    for norm, count in zip(norms, counts, strict=True)
                ]
            )

    def read(self, x: Tensor, step: _Step, kept: GrowingLayer) -> tuple[Tensor, Tensor]:
        """The next hidden states, (batch, hidden_size), and the attention weights."""
        heads = self._qkv(self._norm_before(x)).view(len(x), -1, self._head_dim).float()
        rotated, values = heads.tensor_split([-self.num_key_value_heads], dim=1)
        if self._head_norm is not None:
            rotated = rms_norm(rotated, (self._head_dim,), None, self._eps) * self._head_norm
        rotated = torch.addcmul(rotated * step.cos, rotated.roll(self._head_dim // 2, -1), step.sin)
        query, keys = rotated.tensor_split([self._num_heads], dim=1)
        all_keys, all_values = kept.update(keys[:, :, None], values[:, :, None])
        attended, weights = _attend(
            query, all_keys, all_values, step.bias[self.window], self._scaling
        )
        x = x + self._out(attended)
        gate, up = self._gate_and_up(self._norm_between(x)).chunk(2, dim=-1)
        return x + self._down(self._activation(gate) * up), weights


class _GPT2(_Body):
    """GPT-2: layer norms, learned positions, a plain feed-forward layer."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        self._tokens: Tensor = body.wte.weight.detach()
        self._positions: Tensor = body.wpe.weight.detach()
        self.device = self._tokens.device
        self.norm = _norm(body.ln_f)
        self.layers = [_GPT2Layer(layer, dtype) for layer in body.h]
        self.heads_by_window = {None: body.config.n_head}

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self._tokens[ids] + self._positions[positions]


class _GPT2Layer:
    """One layer of :class:`_GPT2`."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.attn, layer.mlp
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        self._norm_before, self._norm_between = _norm(layer.ln_1), _norm(layer.ln_2)
        self._qkv = _Product([attention.c_attn], dtype)
        self._out = _Product([attention.c_proj], dtype)
        self._up, self._down = _Product([mlp.c_fc], dtype), _Product([mlp.c_proj], dtype)
        self._activation = _ACTIVATIONS[attention.config.activation_function]

    def read(self, x: Tensor, step: _Step, kept: GrowingLayer) -> tuple[Tensor, Tensor]:
        """The next hidden states, (batch, hidden_size), and the attention weights."""
        heads = self._qkv(self._norm_before(x)).view(len(x), 3, -1, 1, self._head_dim)
        query, keys, values = heads.unbind(1)
        all_keys, all_values = kept.update(keys, values)
        attended, weights = _attend(
            query[:, :, 0], all_keys, all_values, step.bias[None], self._scaling
        )
        x = x + self._out(attended)
        return x + self._down(self._activation(self._up(self._norm_between(x)))), weights
