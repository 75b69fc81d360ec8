"""Infos of a vector environment, in the form that Gymnasium gives them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["put"]


def put(infos: dict[str, Any], name: str, values: Any, rows: np.ndarray) -> None:
    """Add an info of some rows, with the mask ``_name`` beside it.

    >>> infos = {}
    >>> put(infos, "score", np.array([0.5, 2.0]), np.array([True, False, True]))
    >>> infos["score"], infos["_score"]
    (array([0.5, 0. , 2. ]), array([ True, False,  True]))

    Args:
        infos: The infos, which are changed.
        name: The key.
        values: One value for each of these rows, in their order, shape (rows.sum(), ...). The
            other rows get zeros, or None in an array of objects.
        rows: The rows, bool, shape (num_envs,).
    """
    values = np.asarray(values)
    everywhere = np.zeros((len(rows), *values.shape[1:]), dtype=values.dtype)
    if values.dtype == np.object_:
        everywhere.fill(None)
    everywhere[rows] = values
    infos[name], infos[f"_{name}"] = everywhere, rows.copy()
