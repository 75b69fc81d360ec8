"""Controls: what a method of credit assignment must beat before its information gets the praise.

The random ones draw from a generator that is seeded by the seed and the text, so that the credit of
a completion does not depend on what else is in its batch, nor on the order or the padding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from textgym.credit.attention import AttentionCredit
from textgym.credit.base import CreditAssigner, WeightedCredit, close_residual
from textgym.credit.registry import register_credit_assigner
from textgym.errors import InvalidArgumentError
from textgym.models import RewardModel, ScoredCompletions
from textgym.models.profile import stretch_profile
from textgym.models.readouts import Heads, Layers

__all__ = [
    "PositionCredit",
    "RandomCredit",
    "ShuffledAttentionCredit",
    "SparseCredit",
    "UniformCredit",
]


@register_credit_assigner
class SparseCredit(CreditAssigner):
    """All of the score on the last token: credit_t = R·1[t = T], what the environment itself pays.

    Cost: none. Guarantee: it is the reward that all others are compared with.

    Example:
        >>> from textgym.credit._example import five_tokens
        >>> SparseCredit()(five_tokens())[0, 2:]
        tensor([0., 0., 0., 0., 2.])
    """

    name = "sparse"
    causal = True
    signed = False

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`CreditAssigner`."""
        nothing = torch.zeros_like(scored.completion_mask, dtype=torch.float32)
        return close_residual(nothing, scored.score, scored.completion_mask)


@register_credit_assigner
class UniformCredit(WeightedCredit):
    """The same share for every token: densification without any information.

    credit_t = β·R/T + (1-β)·R·1[t = T].

    Cost: none. Guarantee: that of all hindsight credit, at γ = 1 every completion keeps its return.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit._example import five_tokens
        >>> UniformCredit(beta=0.5)(five_tokens())[0, 2:]
        tensor([0.2000, 0.2000, 0.2000, 0.2000, 1.2000])
    """

    name = "uniform"

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """One for every token."""
        return scored.completion_mask.float()


@register_credit_assigner
class RandomCredit(WeightedCredit):
    """Random shares: density and unevenness without information.

    credit_t = β·α_t·R + (1-β)·R·1[t = T], with α drawn from a symmetric Dirichlet distribution.
    The same text always gets the same shares.

    Cost: none. Guarantee: that of :class:`UniformCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        concentration: Of the Dirichlet distribution: 1 is uniform on all shares, a larger number
            makes them more even.
        seed: Another seed gives other shares.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit._example import five_tokens
        >>> credit = RandomCredit(beta=1.0, seed=3)(five_tokens())[0, 2:]
        >>> bool(credit.min() > 0), round(credit.sum().item(), 4)
        (True, 2.0)
    """

    name = "random"

    def __init__(
        self, beta: float = 0.8, gamma: float = 1.0, *, concentration: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(beta, gamma)
        if not 0.0 < concentration < float("inf"):
            raise InvalidArgumentError("concentration", concentration, "must be positive")
        self.concentration, self.seed = float(concentration), _check_seed(seed)

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """A draw per completion."""

        def draw(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return rng.dirichlet(np.full(len(shares), self.concentration))

        return _by_text(scored, torch.zeros_like(scored.input_ids), draw, self.seed)


@register_credit_assigner
class ShuffledAttentionCredit(AttentionCredit):
    """ABC's own shares, shuffled within the completion: its unevenness without its aim.

    credit_t = β·α_π(t)·R + (1-β)·R·1[t = T], with α as in :class:`AttentionCredit` and π a random
    permutation. The same text is always shuffled alike.

    Cost: none. Guarantee: that of :class:`AttentionCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: As for :class:`AttentionCredit`.
        heads: As for :class:`AttentionCredit`.
        seed: Another seed gives other permutations.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit._example import five_tokens
        >>> from textgym.models import AttentionRow
        >>> row = [0.25, 0.25, 0.05, 0.2, 0.05, 0.1, 0.1]
        >>> credit = ShuffledAttentionCredit(beta=1.0)(five_tokens({AttentionRow(): row}))[0, 2:]
        >>> credit.sort().values
        tensor([0.2000, 0.2000, 0.4000, 0.4000, 0.8000])
    """

    name = "shuffled-attention"
    paper = "none"

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        layers: Layers = -1,
        heads: Heads = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__(beta, gamma, layers=layers, heads=heads)
        self.seed = _check_seed(seed)

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The attention row, shuffled."""

        def shuffle(attention: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return rng.permutation(attention)

        return _by_text(scored, super().weights(scored), shuffle, self.seed)


def _check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidArgumentError("seed", seed, "must be a whole number of at least 0")
    return int(seed)


def _by_text(
    scored: ScoredCompletions,
    values: Tensor,
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    seed: int,
) -> Tensor:
    """Replace the values of each completion by a draw that depends on its text and the seed."""
    result = torch.zeros(values.shape)
    for row in range(len(scored)):
        text = scored.input_ids[row][scored.attention_mask[row]].cpu().numpy()
        mask = scored.completion_mask[row].cpu()
        rng = np.random.default_rng([seed, zlib.crc32(text.tobytes())])
        drawn = draw(values[row].cpu()[mask].float().numpy(), rng)
        result[row, mask] = torch.from_numpy(np.ascontiguousarray(drawn, dtype=np.float32))
    return result.to(scored.score.device)


@register_credit_assigner
class PositionCredit(WeightedCredit):
    """ABC's mean profile over the position: what attention knows without reading the text.

    credit_t = β·α_t·R + (1-β)·R·1[t = T], with α_t the part of a fixed profile that lies between
    (t-1)/T and t/T. The profile is fitted on reference completions by
    :func:`textgym.models.profile.mean_profile`.

    Cost: none. Guarantee: that of :class:`UniformCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        profile: Non-negative shares of equal parts of a completion, first to last; None for the
            one that the reward model ships (``attention_profile`` in its config).

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        The last half gets three times as much as the first.

        >>> from textgym.credit._example import five_tokens
        >>> PositionCredit(beta=1.0, profile=[0.25, 0.75])(five_tokens())[0, 2:]
        tensor([0.2000, 0.2000, 0.4000, 0.6000, 0.6000])
    """

    name = "position"

    def __init__(
        self, beta: float = 0.8, gamma: float = 1.0, *, profile: Sequence[float] | None = None
    ) -> None:
        super().__init__(beta, gamma)
        if profile is not None and (len(profile) == 0 or min(profile) < 0 or sum(profile) <= 0):
            raise InvalidArgumentError(
                "profile", profile, "must be non-negative numbers with a positive sum"
            )
        self.profile = profile

    def check_reward_model(self, reward_model: RewardModel) -> None:
        """Check that there is a profile.

        Raises:
            InvalidArgumentError: If neither the constructor nor the reward model has one.
        """
        super().check_reward_model(reward_model)
        self._profile_for(reward_model)

    def _profile_for(self, reward_model: RewardModel | None) -> Sequence[float]:
        profile = self.profile or getattr(reward_model, "attention_profile", None)
        if profile is None:
            raise InvalidArgumentError(
                "profile",
                None,
                "the reward model ships none; fit one on reference completions with "
                "textgym.models.profile.mean_profile and pass it",
            )
        return profile

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The profile, stretched over each completion."""
        profile = self._profile_for(scored.reward_model)
        result = torch.zeros(scored.input_ids.shape)
        for row, mask in enumerate(scored.completion_mask.cpu()):
            result[row, mask] = stretch_profile(profile, int(mask.sum()))
        return result.to(scored.score.device)
