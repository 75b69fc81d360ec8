"""Controls: what a method must beat before its information deserves the praise.

The random controls seed a generator with the seed and the text. So the credit of a completion does
not depend on the rest of its batch, on the order of the rows or on the padding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from textgym.checks import check_number, check_whole_number
from textgym.credit.attention import AttentionCredit
from textgym.credit.base import CreditAssigner, WeightedCredit, close_residual
from textgym.credit.checks import check_gamma
from textgym.credit.registry import register_credit_assigner
from textgym.credit.start import Start, check_start, less_start_values, start_readouts
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
    """The whole score on the last token: credit_t = R·1[t = T], as the environment pays it.

    Cost: none. Guarantee: this is the reward that all other methods are compared with.

    Args:
        gamma: Discount factor of the agent, in (0, 1]. It matters only with ``start="prompt"``.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit import SparseCredit
        >>> from textgym.models import Completions
        >>> scored = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]]).with_score([2.0])
        >>> SparseCredit()(scored)[0, 2:]
        tensor([0., 0., 0., 0., 2.])
    """

    name = "sparse"
    label = "sparse reward"
    causal = True
    signed = False

    def __init__(self, *, gamma: float = 1.0, start: Start = "zero") -> None:
        self.gamma = check_gamma(gamma)
        self.start = check_start(start)
        self.readouts = start_readouts(start)

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the credit of every token; see :class:`CreditAssigner`."""
        if self.start != "zero":
            scored = less_start_values(scored, self.start_values(scored), self.gamma)
        nothing = torch.zeros_like(scored.completion_mask, dtype=torch.float32)
        return close_residual(nothing, scored.score, scored.completion_mask)


@register_credit_assigner
class UniformCredit(WeightedCredit):
    """The same share for every token: a dense reward without any information.

    credit_t = β·R/T + (1-β)·R·1[t = T].

    Cost: none. Guarantee: at γ = 1 every completion keeps its return, as with all hindsight credit.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit import UniformCredit
        >>> from textgym.models import Completions
        >>> scored = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]]).with_score([2.0])
        >>> UniformCredit(beta=0.5)(scored)[0, 2:]
        tensor([0.2000, 0.2000, 0.2000, 0.2000, 1.2000])
    """

    name = "uniform"
    label = "uniform credit"

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """One for every token of the completion, shape (batch, num_tokens)."""
        return scored.completion_mask.float()


@register_credit_assigner
class RandomCredit(WeightedCredit):
    """Random shares: dense and uneven, without information.

    credit_t = β·α_t·R + (1-β)·R·1[t = T], with α drawn from a symmetric Dirichlet distribution.
    The same text always gets the same shares.

    Cost: none. Guarantee: the same as for :class:`UniformCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        concentration: Parameter of the Dirichlet distribution. At 1 all ways to split the score are
            equally likely; larger numbers make the shares more even.
        seed: A different seed gives different shares.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit import RandomCredit
        >>> from textgym.models import Completions
        >>> scored = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]]).with_score([2.0])
        >>> credit = RandomCredit(beta=1.0, seed=3)(scored)[0, 2:]
        >>> bool(credit.min() > 0), round(credit.sum().item(), 4)
        (True, 2.0)
    """

    name = "random"
    label = "random credit"

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        concentration: float = 1.0,
        seed: int = 0,
        start: Start = "zero",
    ) -> None:
        super().__init__(beta, gamma, start=start)
        self.concentration = check_number(
            "concentration", concentration, above=0.0, remedy="must be a finite number above 0"
        )
        self.seed = check_whole_number("seed", seed, 0)

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """One draw of shares per completion, shape (batch, num_tokens)."""

        def draw(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return rng.dirichlet(np.full(len(places), self.concentration))

        return _by_text(scored, scored.completion_mask, draw, self.seed)


@register_credit_assigner
class ShuffledAttentionCredit(AttentionCredit):
    """ABC's shares in random order: as uneven as ABC, but without its aim.

    credit_t = β·α_π(t)·R + (1-β)·R·1[t = T], with α as in :class:`AttentionCredit` and π a random
    permutation. The same text is always shuffled the same way.

    Cost: none. Guarantee: the same as for :class:`AttentionCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: The layer whose attention counts (-1 is the last), or a tuple of layers, whose mean
            is taken.
        heads: How the heads are reduced: "mean", "max", or the number of one head.
        seed: A different seed gives different permutations.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit import ShuffledAttentionCredit
        >>> from textgym.models import AttentionRow, Completions
        >>> row = [0.25, 0.25, 0.05, 0.2, 0.05, 0.1, 0.1]
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> scored = completions.with_score([2.0], {AttentionRow(): [row]})
        >>> credit = ShuffledAttentionCredit(beta=1.0)(scored)[0, 2:]
        >>> credit.sort().values
        tensor([0.2000, 0.2000, 0.4000, 0.4000, 0.8000])
    """

    name = "shuffled-abc"
    label = "shuffled ABC"
    paper = "none"

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        layers: Layers = -1,
        heads: Heads = "mean",
        seed: int = 0,
        start: Start = "zero",
    ) -> None:
        super().__init__(beta, gamma, layers=layers, heads=heads, start=start)
        self.seed = check_whole_number("seed", seed, 0)

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The attention row, shuffled within the completion, shape (batch, num_tokens)."""

        def shuffle(attention: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return rng.permutation(attention)

        return _by_text(scored, super().weights(scored), shuffle, self.seed)


def _checked_profile(profile: Sequence[float]) -> list[float]:
    remedy = "must be a list of non-negative finite numbers with a positive sum"
    if not isinstance(profile, Sequence | np.ndarray) or isinstance(profile, str | bytes):
        raise InvalidArgumentError("profile", profile, remedy)
    checked = [check_number("profile", share, least=0.0, remedy=remedy) for share in profile]
    if not sum(checked) > 0:
        raise InvalidArgumentError("profile", profile, remedy)
    return checked


def _by_text(
    scored: ScoredCompletions,
    values: Tensor,
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    seed: int,
) -> Tensor:
    """Replace the values of each completion with a draw that depends on its text and the seed."""
    ids, is_token, is_completion, before = (
        tensor.cpu().numpy()
        for tensor in (
            scored.input_ids,
            scored.attention_mask,
            scored.completion_mask,
            values.float(),
        )
    )
    result = np.zeros(before.shape, dtype=np.float32)
    for row, mask in enumerate(is_completion):
        text = ids[row, is_token[row]]
        rng = np.random.default_rng([seed, zlib.crc32(text.tobytes())])
        result[row, mask] = draw(before[row, mask], rng)
    return torch.from_numpy(result).to(scored.score.device)


@register_credit_assigner
class PositionCredit(WeightedCredit):
    """ABC's average profile over the position: what attention knows without reading the text.

    credit_t = β·α_t·R + (1-β)·R·1[t = T]. α_t is the part of a fixed profile between (t-1)/T and
    t/T. :func:`textgym.models.profile.mean_profile` fits the profile on reference completions.

    Cost: none. Guarantee: the same as for :class:`UniformCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        profile: Non-negative shares of equal parts of a completion, first to last. None uses the
            profile that comes with the reward model (``attention_profile`` in its config).
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        The second half gets three times as much as the first.

        >>> from textgym.credit import PositionCredit
        >>> from textgym.models import Completions
        >>> scored = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]]).with_score([2.0])
        >>> PositionCredit(beta=1.0, profile=[0.25, 0.75])(scored)[0, 2:]
        tensor([0.2000, 0.2000, 0.4000, 0.6000, 0.6000])
    """

    name = "position"
    label = "position credit"

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        profile: Sequence[float] | None = None,
        start: Start = "zero",
    ) -> None:
        super().__init__(beta, gamma, start=start)
        self.profile = None if profile is None else _checked_profile(profile)

    def check_reward_model(self, reward_model: RewardModel) -> None:
        """Check that there is a profile.

        Raises:
            InvalidArgumentError: If neither the constructor nor the reward model has one.
        """
        super().check_reward_model(reward_model)
        self._profile_for(reward_model)

    def _profile_for(self, reward_model: object) -> Sequence[float]:
        profile = self.profile or getattr(reward_model, "attention_profile", None)
        if profile is None:
            raise InvalidArgumentError(
                "profile",
                None,
                "the reward model comes without one; fit one on reference completions with "
                "textgym.models.profile.mean_profile and pass it",
            )
        return profile

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The profile, stretched over each completion, shape (batch, num_tokens)."""
        profile = self._profile_for(scored.reward_model)
        result = torch.zeros(scored.input_ids.shape)
        for row, mask in enumerate(scored.completion_mask.cpu()):
            result[row, mask] = stretch_profile(profile, int(mask.sum()))
        return result.to(scored.score.device)
