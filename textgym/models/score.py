"""How the logits of a classifier become a score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from textgym.errors import InvalidArgumentError

__all__ = ["Score", "make_score"]

Score = Literal["log-odds", "logit", "log-probability"] | Callable[[Tensor], Tensor]
"""A way to compute a score, by name, or a function of logits (..., num_labels) to scores (...)."""


def make_score(
    config: Any, score: Score | None = None, label: str | int | None = None
) -> Callable[[Tensor], Tensor]:
    """A function from logits to scores.

    =================  =============================================================
    score              of the label l
    =================  =============================================================
    "log-odds"         log p(l) - log(1 - p(l)); of two labels, the difference of logits
    "logit"            its logit, as reward models are trained (Bradley-Terry)
    "log-probability"  log p(l), never above 0
    =================  =============================================================

    Labels exclude each other, and p is a softmax, unless the config's ``problem_type`` says
    otherwise: of ``"multi_label_classification"``, as of a single label, each has a p of its own,
    the sigmoid of its logit; of a ``"regression"`` on several numbers there is no p.

    Args:
        config: The classifier's, with ``num_labels``, ``id2label`` and perhaps ``problem_type``.
        score: See above. None: the logit of a single label, and the log-odds of two, or their logit
            if the config says that they do not exclude each other.
        label: Name or number of the label. None: "positive" if there is one, else the last; needed
            for more than two.

    Returns:
        Takes logits, float32, shape (..., num_labels); returns shape (...).

    Raises:
        InvalidArgumentError: If the score or the label is unknown, or must be named, or a
            regression is asked for a probability.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(num_labels=2, id2label={0: "NEGATIVE", 1: "POSITIVE"})
    >>> make_score(config)(torch.tensor([[0.5, 2.0]]))
    tensor([1.5000])
    """
    if callable(score):
        return partial(_own_score, score)
    num_labels = int(config.num_labels)
    names = {str(name).lower(): int(i) for i, name in (config.id2label or {}).items()}
    if score is None and num_labels > 2:
        raise InvalidArgumentError(
            "score",
            None,
            f"it has {num_labels} labels ({', '.join(names)}); name the one that counts, as in "
            'RewardModel(model, tokenizer, score="log-odds", label="joy"), or pass a '
            "function of the logits",
        )
    if score not in (None, "log-odds", "logit", "log-probability"):
        raise InvalidArgumentError(
            "score", score, 'must be "log-odds", "logit", "log-probability" or a function'
        )
    if label is None and num_labels > 2:
        raise InvalidArgumentError("label", None, f"must be one of {', '.join(names)}")
    index: Any = names.get("positive", num_labels - 1) if label is None else label
    if isinstance(index, bool) or not isinstance(index, str | Integral):
        raise InvalidArgumentError("label", label, "must be the name or the number of a label")
    if isinstance(index, str):
        if index.lower() not in names:
            raise InvalidArgumentError(
                "label", label, f"must be one of the labels {', '.join(names)}"
            )
        index = names[index.lower()]
    if not 0 <= index < num_labels:
        raise InvalidArgumentError("label", label, f"must be a number from 0 to {num_labels - 1}")
    problem = getattr(config, "problem_type", None)
    if problem == "regression" and num_labels > 1 and score in ("log-odds", "log-probability"):
        raise InvalidArgumentError(
            "score", score, 'the model is a regression, without probabilities; pass "logit"'
        )
    stands_alone = num_labels == 1 or problem in ("multi_label_classification", "regression")
    if stands_alone and score == "log-probability":
        return partial(_log_sigmoid, index)
    if stands_alone or score == "logit":  # log-odds, as p is the sigmoid of the logit
        return partial(_logit, index)
    return partial(_log_probability if score == "log-probability" else _log_odds, index)


def _logit(label: int, logits: Tensor) -> Tensor:
    return logits[..., label]


def _log_sigmoid(label: int, logits: Tensor) -> Tensor:
    return logsigmoid(logits[..., label])


def _log_probability(label: int, logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[..., label]


def _log_odds(label: int, logits: Tensor) -> Tensor:
    others = [one for one in range(logits.shape[-1]) if one != label]
    if len(others) == 1:
        return logits[..., label] - logits[..., others[0]]
    return logits[..., label] - logits[..., others].logsumexp(-1)


def _own_score(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    scores = function(logits)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:-1]:
        raise InvalidArgumentError(
            "score",
            getattr(function, "__name__", function),
            f"must return a tensor of shape {tuple(logits.shape[:-1])} for logits of shape "
            f"{tuple(logits.shape)}",
        )
    return scores
