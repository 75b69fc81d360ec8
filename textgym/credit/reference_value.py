"""The reference policy's value as a potential: the score to expect, from the score so far.

The reward model has seen the text so far, and its prefix score already says most of what can be
known about the final score. What is left to learn is how far the reference policy moves the score
from here on. Prefix scores are too extreme early in a completion, for example, because the rest of
the text pulls them back to the mean. A regression on a few hundred completions corrects this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from textgym.checks import check_number
from textgym.credit.potentials import Potential
from textgym.credit.start import prompt_scores
from textgym.errors import InvalidArgumentError
from textgym.models import PrefixScores, ScoredCompletions

__all__ = ["ReferenceValue", "leave_one_out_explained_variance", "ridge_regression"]

_FORMAT = "textgym-reference-value-1"


def ridge_regression(features: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Fit c to minimise ‖y - Xc‖² + ridge·‖c‖², in closed form.

    Args:
        features: X, shape (num_samples, num_features).
        targets: y, shape (num_samples,).
        ridge: Weight of the penalty, above 0, so that there is always one solution.

    Returns:
        The coefficients, shape (num_features,). And the error at each sample of a fit without that
        sample, shape (num_samples,): the error of the full fit divided by 1 - h, where h is the
        sample's leverage (Allen, 1974, "The relationship between variable selection and data
        augmentation and a method for prediction", Technometrics 16).

    >>> features = torch.tensor([[1.0], [1.0], [1.0]])
    >>> coefficients, errors = ridge_regression(features, torch.tensor([0.0, 0.0, 8.0]), ridge=1.0)
    >>> coefficients  # the sum of the targets by 3 + 1; without the last sample it is 0
    tensor([2.])
    >>> errors
    tensor([-2.6667, -2.6667,  8.0000])
    """
    penalty = ridge * torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    solved = torch.linalg.solve(features.T @ features + penalty, features.T)  # (features, samples)
    coefficients = solved @ targets
    leverage = (features * solved.T).sum(dim=1)
    return coefficients, (targets - features @ coefficients) / (1 - leverage)


class ReferenceValue(Potential):
    """The score to expect if the reference policy goes on with the text: Φ_t = V(s_t).

    V is linear in the prefix score s_t and the score s_0 of the prompt, with coefficients of its
    own after each number of tokens:

        V(s_t) = s_t + c_t · (1, s_t, s_0)

    With all c_t = 0 this is :class:`PrefixScore`. Like the global value model of DVPO (Huang et
    al., 2025, arXiv 2502.16944), V is fitted before training and then frozen; here the reward model
    stays, and does most of the work. Shaping with Φ equals starting a critic at V (Wiewiora, 2003,
    "Potential-based shaping and Q-value initialization are equivalent").

    :func:`textgym.agents.values.fit_reference_value` fits it to an environment and a policy.

    Cost: that of :class:`PrefixScore`. Guarantee: Φ depends only on the text so far, whatever the
    coefficients. A poor fit makes learning slower, and does not move the optimum.

    Args:
        coefficients: c_t for t = 0, 1, …, shape (num_positions, 3). After more tokens than these,
            the last ones count.

    Raises:
        InvalidArgumentError: If the coefficients have another shape, or are not finite.

    Example:
        Of what the prefix score has gained over the prompt, half is expected to remain.

        >>> from textgym.credit import ReferenceValue
        >>> from textgym.models import Completions, PrefixScores
        >>> prefix_scores = [0.0, 0.5, 0.5, 1.5, 1.0, 1.0, 2.0]  # the prompt alone scores 0.5
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> scored = completions.with_score([2.0], {PrefixScores(): [prefix_scores]})
        >>> ReferenceValue([[0.0, -0.5, 0.5]])(scored)[0, 2:]
        tensor([0.5000, 1.0000, 0.7500, 0.7500, 1.2500])
    """

    name = "reference-value"
    paper = "after arXiv 2502.16944"
    readouts = frozenset({PrefixScores()})

    def __init__(self, coefficients: Tensor | list[list[float]]) -> None:
        try:
            self.coefficients = torch.as_tensor(coefficients, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise InvalidArgumentError(
                "coefficients", coefficients, "must be numbers of shape (num_positions, 3)"
            ) from None
        shape = tuple(self.coefficients.shape)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != 3:
            raise InvalidArgumentError(
                "coefficients", shape, "must have shape (num_positions, 3), with a position or more"
            )
        if not bool(self.coefficients.isfinite().all()):
            raise InvalidArgumentError("coefficients", self.coefficients, "must be finite numbers")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<{len(self.coefficients)} positions>)"

    @classmethod
    def fit(cls, scored: ScoredCompletions, ridge: float = 1.0) -> Self:
        """Fit V to completions of the reference policy, one regression per number of tokens.

        The completions that went on after t tokens teach c_t. The penalty pulls c_t to 0, so where
        few completions are that long, V stays close to the prefix score.

        Args:
            scored: Finished completions with ``PrefixScores``.
            ridge: Weight of the penalty on the squared coefficients, above 0. It counts about as
                much as that many completions.

        Raises:
            InvalidArgumentError: If there is no completion, or ``ridge`` is out of range.
        """
        fits = [ridge_regression(x, y - s, ridge)[0] for x, s, y in _samples(scored, ridge)]
        return cls(torch.stack(fits))

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute V of the state that ends with each token; see :class:`Potential`."""
        scores, start = scored[PrefixScores()], prompt_scores(scored)[:, None]
        coefficients = self.coefficients.to(scores.device)
        num_generated = scored.completion_mask.cumsum(dim=1)  # up to each token
        c = coefficients[num_generated.clamp(max=len(coefficients) - 1)]  # (batch, num_tokens, 3)
        values = scores + c[..., 0] + c[..., 1] * scores + c[..., 2] * start
        return values.masked_fill(~scored.completion_mask, 0.0)

    def start_values(self, scored: ScoredCompletions) -> Tensor:
        """Compute V(s_0), the value of each prompt alone, float32, shape (batch,)."""
        start = prompt_scores(scored)
        constant, of_score, of_start = self.coefficients[0].to(start.device)
        return start + constant + (of_score + of_start) * start

    def save(self, path: str | Path) -> None:
        """Write the coefficients into a safetensors file; an existing file is replaced."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({"coefficients": self.coefficients}, path, metadata={"format": _FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            InvalidArgumentError: If the file does not exist, or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("format") == _FORMAT:
                    return cls(file.get_tensor("coefficients"))
        except (OSError, SafetensorError) as error:
            raise InvalidArgumentError("path", str(path), f"cannot be read ({error})") from None
        raise InvalidArgumentError("path", str(path), f"pass a file that {cls.__name__}.save wrote")


def leave_one_out_explained_variance(scored: ScoredCompletions, ridge: float = 1.0) -> Tensor:
    """How much of the score's variance :meth:`ReferenceValue.fit` explains, on unseen completions.

    Each completion is predicted by the fit to all others, so the same completions can serve for
    fitting and for judging.

    Args:
        scored: Finished completions with ``PrefixScores``.
        ridge: As in :meth:`ReferenceValue.fit`.

    Returns:
        1 - mean squared error / variance of the score, among the completions that went on after t
        tokens, for t = 0, 1, …; float32, shape (num_positions,). 0 where the scores do not vary.

    Raises:
        InvalidArgumentError: If there is no completion, or ``ridge`` is out of range.
    """
    explained = []
    for features, so_far, score in _samples(scored, ridge):
        error = ridge_regression(features, score - so_far, ridge)[1].square().mean()
        variance = score.var(correction=0)
        explained.append(torch.where(variance > 0, 1 - error / variance, 0.0))
    return torch.stack(explained).float()


def _samples(scored: ScoredCompletions, ridge: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For t = 0, 1, …: features, prefix score and score of the texts that went on after t tokens.

    All are float64, of shapes (num_samples, 3), (num_samples,) and (num_samples,).
    """
    check_number("ridge", ridge, above=0.0, remedy="must be a finite number above 0")
    lengths = scored.completion_mask.sum(dim=1)
    if not bool(lengths.any()):
        raise InvalidArgumentError(
            "scored", tuple(scored.input_ids.shape), "pass at least one completion of a token"
        )
    start = prompt_scores(scored).double()
    num_generated = scored.completion_mask.cumsum(dim=1)
    for t in range(int(lengths.max())):
        if t == 0:
            so_far = start
        else:
            at_t = scored.completion_mask & (num_generated == t)  # at most one token per row
            so_far = (scored[PrefixScores()] * at_t).sum(dim=1).double()
        goes_on = lengths > t
        features = torch.stack([torch.ones_like(start), so_far, start], dim=1)
        yield features[goes_on], so_far[goes_on], scored.score.double()[goes_on]
