"""How much of what the machine can do does a PPO update get?

The floating-point operations of an update, divided by its time, divided by the rate of the fastest
matrix product of the same dtype in the same round: squares of 512 to 2,048 and the shapes of the
model itself.

Operations are counted by formula, with 2 per multiplication and addition. For B sequences of T
tokens that are fed, of which S columns are read out, a body of P weights that multiply (all
matrices but the embeddings), L layers of attention of width A (heads times their size), hidden
states of width d and a vocabulary of V::

    forward    2·P·B·T  +  4·L·A·B·T²  +  2·d·(V + 1)·B·S
    update     3 · forward

The first term is the linear layers, the second queries times keys and weights times values, the
third the language model's head, tied or not, and the value's, on the columns that are read out. The
backward pass does each product twice, once for either factor. The last token of a text is not fed,
so T is one less than the length. All T² pairs count, although causal attention needs only half of
them: 1% of the whole here, and the usual convention (Chowdhery et al., 2022, arXiv 2204.02311,
appendix B). Norms, activations, softmax, losses and the optimizer count nothing: they are overhead.

There are two limits in float32. PyTorch multiplies float32 matrices by MKL, and bfloat16 ones by
oneDNN, which on some processors, those of AMD among them, is much faster in float32 too. The goal
is set against the product that PyTorch takes by default; the share of the fastest one stands beside
it. ``torch.set_float32_matmul_precision("medium")`` makes PyTorch's layers use oneDNN: it permits
products in bfloat16, but where the processor has no fast ones of that kind, oneDNN stays with
float32. Updates are timed with it as well, and ``relative_error`` tells which of both it is: about
4e-7 in float32, 2e-3 in bfloat16.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.utils import mkldnn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from speed import models
from speed.timing import Comparison, quiet_profile, result, side_by_side
from textgym.agents import PPO, Rollout

__all__ = [
    "forward_operations",
    "measure",
    "synthetic_agent",
    "synthetic_rollout",
    "update_operations",
]

NUM_EPISODES = 16
MINIBATCHES = (16, 4)
SQUARES = (512, 1024, 2048)
MEDIUM = "medium precision"


@dataclass(frozen=True)
class Case:
    """A model, the length of texts and completions, and how often everything is timed."""

    model: str
    num_tokens: int
    num_steps: int
    rounds: int


CASES = [Case("gpt2-small", 128, 96, 3), Case("embedded", 32, 16, 9)]
QUICK = [Case("gpt2-small", 16, 8, 2), Case("embedded", 32, 16, 2)]


def measure(quick: bool = False) -> list[dict]:
    """Shares of the limit, by model, dtype and size of the minibatch.

    Args:
        quick: Tiny sizes, in seconds; also holds the formula against PyTorch's count.
    """
    rows = []
    for case in QUICK if quick else CASES:
        for dtype in ("float32", "bfloat16"):
            rows += _measure_case(case, dtype, quick)
    return rows


def _measure_case(case: Case, dtype: str, quick: bool) -> list[dict]:
    rollout = synthetic_rollout(NUM_EPISODES, case.num_tokens, case.num_steps)
    with tempfile.TemporaryDirectory() as log_dir:
        model = models.language_model(case.model, quick)
        agent = synthetic_agent(model, log_dir, dtype=None if dtype == "float32" else dtype)
    del model  # The agent has a copy.
    batch, _ = agent._label(rollout)
    model = agent.policy.model
    fed = case.num_tokens - 1
    operations = update_operations(model, NUM_EPISODES, fed, case.num_steps)

    def update(minibatch_size: int, precision: str = "highest") -> Callable[[], object]:
        def run() -> object:
            agent.config = dataclasses.replace(agent.config, minibatch_size=minibatch_size)
            with _precision(precision):
                return agent._update(batch)

        return run

    updates = {f"minibatch {size}": update(size) for size in MINIBATCHES}
    if quick:
        _check_operations(updates["minibatch 16"], operations)
    shapes = [(size, size, size) for size in SQUARES[: 1 if quick else None]]
    shapes += _own_shapes(model, NUM_EPISODES * fed, NUM_EPISODES * case.num_steps)
    products = {f"product {m}x{k}x{n}": _product(m, k, n, dtype) for m, k, n in shapes}
    others = {}
    if dtype == "float32" and torch.backends.mkldnn.is_available():
        others = {f"oneDNN {m}x{k}x{n}": _onednn_product(m, k, n) for m, k, n in shapes}
        updates[f"minibatch 16, {MEDIUM}"] = update(16, "medium")
    compared = side_by_side(
        {**updates, **products, **others}, case.rounds, min_seconds=0.0 if quick else 0.2
    )
    limits = {"PyTorch's fastest product": list(products)}
    if others:
        limits["the fastest product, oneDNN's included"] = [*products, *others]
    rows = []
    for name, run in updates.items():
        detail: dict[str, Any] = {
            "operations": operations,
            "breakdown": _breakdown(run, model.config.vocab_size),
            "parameters": sum(weight.numel() for weight in agent.policy.parameters()),
        }
        if MEDIUM in name:
            detail["relative_error"] = _relative_error("medium")
        for limit, names in limits.items():
            is_default = limit.startswith("PyTorch")
            if is_default and MEDIUM in name:
                continue
            # What the update would take at the limit, in each round.
            seconds = [
                operations / max(_rate(product, of_round[product]) for product in names)
                for of_round in _rounds(compared)
            ]
            share = Comparison({"limit": seconds, "update": compared.seconds[name]})
            goal = ">= 0.5" if case.model == "gpt2-small" and is_default else None
            rows.append(
                result(
                    "machine",
                    f"{case.model} {NUM_EPISODES}x{case.num_tokens} {dtype}, {name}",
                    f"operations per second: update / {limit}",
                    share.ratio("limit", "update"),
                    goal,
                    gigaflops=round(operations / share.median("update") / 1e9, 1),
                    limit_gigaflops=round(operations / share.median("limit") / 1e9, 1),
                    **detail,
                )
            )
            detail = {}
    rows[0]["detail"]["seconds"] = compared.seconds
    return rows


# --- The update -----------------------------------------------------------------------------------


class _Tokens(gym.Env):
    """Tells the size of the vocabulary, and is never stepped."""

    def __init__(self, vocab_size: int, num_tokens: int = 8) -> None:
        box = gym.spaces.Box
        self.observation_space = gym.spaces.Dict(
            {
                "input_ids": box(0, vocab_size - 1, (num_tokens,), np.int64),
                "attention_mask": box(0, 1, (num_tokens,), np.int8),
            }
        )
        self.action_space = gym.spaces.Discrete(vocab_size)


def synthetic_agent(model: PreTrainedModel, log_dir: str, **hyperparameters: Any) -> PPO:
    """PPO with one epoch, on a model whose whole vocabulary is legal; it uses a copy."""
    return PPO(
        model,
        _Tokens(model.config.vocab_size),
        episodes_per_iteration=NUM_EPISODES,
        num_epochs=1,
        learning_rate=1e-6,
        log_dir=log_dir,
        **hyperparameters,
    )


def synthetic_rollout(num_episodes: int, num_tokens: int, num_steps: int) -> Rollout:
    """Random tokens and rewards, without padding.

    Args:
        num_episodes: Number of rows.
        num_tokens: Length of each, prompt and completion.
        num_steps: Length of each completion.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (num_episodes, num_steps)
    rewards = torch.randn(shape, generator=generator)
    return Rollout(
        input_ids=torch.randint(3, 4096, (num_episodes, num_tokens), generator=generator),
        attention_mask=torch.ones(num_episodes, num_tokens, dtype=torch.bool),
        completion_mask=torch.ones(shape, dtype=torch.bool),
        rewards=rewards,
        credit=rewards,
        logprobs=torch.zeros(shape),
        scores=rewards.sum(dim=1),
        truncated=torch.zeros(num_episodes, dtype=torch.bool),
        prompts=[""] * num_episodes,
        completions=[""] * num_episodes,
    )


# --- Counting -------------------------------------------------------------------------------------


def _body_weights(model: PreTrainedModel) -> int:
    """How many weights multiply in the model without its head."""
    linear = (nn.Linear, Conv1D)
    return sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, linear))


def forward_operations(
    model: PreTrainedModel, batch: int, fed: int, read_out: int, pairs: float = 1.0
) -> float:
    """Floating-point operations of a forward pass, by the formula on the module's page.

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
    """Forward and backward, with the arguments of :func:`forward_operations`."""
    return 3 * forward_operations(model, batch, fed, read_out)


def _check_operations(run: Callable[[], object], expected: float) -> None:
    """Hold the formula against what PyTorch counts as it dispatches."""
    with FlopCounterMode(display=False) as counter:
        run()
    counted = counter.get_total_flops()
    if not abs(counted / expected - 1) < 0.03:
        raise AssertionError(f"PyTorch counts {counted:,} operations, the formula {expected:,}")


# --- The limit ------------------------------------------------------------------------------------


def _own_shapes(model: PreTrainedModel, fed: int, read_out: int) -> list[tuple[int, int, int]]:
    """The products of the model's layers and of its head, (rows, inner, columns)."""
    shapes = set()
    for module in model.base_model.modules():
        if isinstance(module, nn.Linear):
            shapes.add((fed, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            shapes.add((fed, *module.weight.shape))
    # A product with the whole vocabulary takes as long as many others, and is never the fastest.
    head = (read_out, model.config.hidden_size, min(model.config.vocab_size, 4096))
    return [*sorted(shapes), head]


def _product(m: int, k: int, n: int, dtype: str) -> Callable[[], object]:
    a, b = torch.randn(m, k), torch.randn(k, n)
    a, b = a.to(getattr(torch, dtype)), b.to(getattr(torch, dtype))
    out = a @ b
    return lambda: torch.mm(a, b, out=out)


def _onednn_product(m: int, k: int, n: int) -> Callable[[], object]:
    """The same product in float32 by oneDNN, with both factors in its own layout."""
    linear = mkldnn.to_mkldnn(nn.Linear(k, n).eval())
    a = torch.randn(m, k).to_mkldnn()
    return torch.no_grad()(lambda: linear(a))


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """PyTorch's precision of float32 products: "highest", its default, or "medium"."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _relative_error(precision: str) -> float:
    """Error of a float32 product of random matrices, relative to their product's norm."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 512, 512, generator=generator)
    with _precision(precision):
        error = (a @ b).double() - a.double() @ b.double()
    return float(error.norm() / (a.double() @ b.double()).norm())


def _rate(name: str, seconds: float) -> float:
    """Operations per second of a product, from its name."""
    m, k, n = map(int, name.split()[-1].split("x"))
    return 2 * m * k * n / seconds


def _rounds(compared: Comparison) -> list[dict[str, float]]:
    """Per round, seconds by name."""
    names = list(compared.seconds)
    rounds = zip(*compared.seconds.values(), strict=True)
    return [dict(zip(names, of_round, strict=True)) for of_round in rounds]


# --- Where the time goes --------------------------------------------------------------------------

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


def _breakdown(run: Callable[[], object], vocab_size: int) -> dict[str, float]:
    """Share of the time per kind of work, from one call under the profiler; they sum to 1."""
    start = time.perf_counter()
    with quiet_profile(record_shapes=True) as profiler:
        run()
        total = 1e6 * (time.perf_counter() - start)
    kinds: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages(group_by_input_shape=True):
        kinds[_kind(event.key, event.input_shapes, vocab_size)] += event.self_cpu_time_total
    kinds["python and dispatch"] += total - sum(kinds.values())
    return {kind: round(kinds[kind] / total, 3) for kind in sorted(kinds, key=kinds.get)[::-1]}


def _kind(name: str, shapes: list, vocab_size: int) -> str:
    if name in PRODUCTS:
        return "matrix products"
    if "attention" in name and name.startswith("aten::"):
        return "attention"
    if name == "aten::_fused_adamw_":
        return "optimizer step"
    if name.startswith("aten::_foreach_") or name == "aten::linalg_vector_norm":
        return "clipping of the gradient"
    if not name.startswith("aten::"):
        return "python and dispatch"
    if any(shape and shape[-1] == vocab_size for shape in shapes if isinstance(shape, list)):
        return "elementwise over the vocabulary"
    return "elementwise, norms and copies"
