"""How much of the machine's limit does a PPO update reach?

The floating-point operations of an update, divided by its time, divided by the rate of the fastest
matrix product of the same dtype in the same round: squares of 512 to 2,048 and the shapes of the
model itself.

Operations are counted by formula, see :mod:`speed.operations`. The last token of a text is not fed,
so T is one less than the length. Counting all T² pairs of attention, and not the causal half, adds
1% here.

There are two limits in float32. PyTorch multiplies float32 matrices with MKL and bfloat16 ones with
oneDNN, which on some processors, AMD's among them, is much faster in float32 too. The goal refers
to the product that PyTorch takes by default; the share of the fastest product is shown as well.
``torch.set_float32_matmul_precision("medium")`` makes PyTorch's layers use oneDNN. It permits
products in bfloat16, but oneDNN stays with float32 if the processor has no fast bfloat16. Updates
are timed with it too, and ``relative_error`` shows which of the two was used: about 4e-7 in
float32, 2e-3 in bfloat16.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import mkldnn
from torch.utils.flop_counter import FlopCounterMode

from harness.profiling import quiet_profile
from harness.timing import Comparison, side_by_side
from speed import models
from speed.operations import products_of, update_operations
from speed.ratios import result
from speed.update import Updater, random_episodes

__all__ = ["measure"]

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
        quick: Tiny sizes, in seconds; also checks the formula against PyTorch's count.
    """
    rows = []
    for case in QUICK if quick else CASES:
        for dtype in models.dtypes():
            rows += _measure_case(case, str(dtype).removeprefix("torch."), quick)
    return rows


def _measure_case(case: Case, dtype: str, quick: bool) -> list[dict]:
    updater = Updater(models.language_model(case.model, quick), dtype)
    episodes = random_episodes(NUM_EPISODES, case.num_tokens, case.num_steps)
    model = updater.model
    fed = case.num_tokens - 1
    operations = update_operations(model, NUM_EPISODES, fed, case.num_steps)

    def update(minibatch_size: int, precision: str = "highest") -> Callable[[], object]:
        def run() -> None:
            with _precision(precision):
                updater.update(episodes, minibatch_size)

        return run

    updates = {f"minibatch {size}": update(size) for size in MINIBATCHES}
    if quick:
        _check_operations(updates["minibatch 16"], operations)
    shapes = [(size, size, size) for size in SQUARES[: 1 if quick else None]]
    shapes += products_of(model, NUM_EPISODES * fed, NUM_EPISODES * case.num_steps)
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
            "parameters": sum(weight.numel() for weight in updater.policy.parameters()),
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


def _check_operations(run: Callable[[], object], expected: float) -> None:
    """Check the formula against what PyTorch counts as it dispatches."""
    with FlopCounterMode(display=False) as counter:
        run()
    counted = counter.get_total_flops()
    if not abs(counted / expected - 1) < 0.03:
        raise AssertionError(f"PyTorch counts {counted:,} operations, the formula {expected:,}")


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
    return {
        kind: round(kinds[kind] / total, 3) for kind in sorted(kinds, key=kinds.__getitem__)[::-1]
    }


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
