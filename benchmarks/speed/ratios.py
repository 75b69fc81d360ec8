"""A measured ratio as a row of rows.json."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Row", "result"]

Row = dict[str, Any]


def result(
    part: str,
    case: str,
    quantity: str,
    ratio: tuple[float, float, float],
    goal: str | None = None,
    **detail: Any,
) -> Row:
    """One measurement, in the form that all parts share.

    Args:
        part: Which part it belongs to.
        case: What was measured.
        quantity: What the ratio is of.
        ratio: The ratio, and the bounds of its interval.
        goal: What it should be, such as "<= 1.02".
        **detail: Raw numbers, JSON values.
    """
    value, low, high = ratio
    detail["threads"] = torch.get_num_threads()
    return {
        "part": part,
        "case": case,
        "quantity": quantity,
        "ratio": round(value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "goal": goal,
        "detail": detail,
    }
