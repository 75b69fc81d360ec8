"""Credit assigners: per-token shares of a finished completion's score."""

from __future__ import annotations

from textgym.credit.attention import (
    AttentionCredit,
    AttentionRolloutCredit,
    PolicyAttentionCredit,
    PolicyLastAttentionCredit,
)
from textgym.credit.base import CreditAssigner, HindsightCredit, WeightedCredit
from textgym.credit.controls import (
    PositionCredit,
    RandomCredit,
    ShuffledAttentionCredit,
    SparseCredit,
    UniformCredit,
)
from textgym.credit.function import AttributionFunction, FunctionCredit
from textgym.credit.gradients import GradientTimesInputCredit, IntegratedGradientsCredit
from textgym.credit.perturbation import OcclusionCredit
from textgym.credit.potentials import (
    POTENTIALS,
    AttentionWeightedPrefixScore,
    FunctionPotential,
    Potential,
    PrefixScore,
    StateFunction,
    get_potential,
    register_potential,
)
from textgym.credit.reference_value import ReferenceValue
from textgym.credit.registry import (
    CREDIT_ASSIGNERS,
    find_credit_assigner,
    get_credit_assigner,
    register_credit_assigner,
)
from textgym.credit.shaping import PrefixScoreCredit, ShapingCredit
from textgym.credit.shapley import ShapleyCredit

__all__ = [
    "CREDIT_ASSIGNERS",
    "POTENTIALS",
    "AttentionCredit",
    "AttentionRolloutCredit",
    "AttentionWeightedPrefixScore",
    "AttributionFunction",
    "CreditAssigner",
    "FunctionCredit",
    "FunctionPotential",
    "GradientTimesInputCredit",
    "HindsightCredit",
    "IntegratedGradientsCredit",
    "OcclusionCredit",
    "PolicyAttentionCredit",
    "PolicyLastAttentionCredit",
    "PositionCredit",
    "Potential",
    "PrefixScore",
    "PrefixScoreCredit",
    "RandomCredit",
    "ReferenceValue",
    "ShapingCredit",
    "ShapleyCredit",
    "ShuffledAttentionCredit",
    "SparseCredit",
    "StateFunction",
    "UniformCredit",
    "WeightedCredit",
    "find_credit_assigner",
    "get_credit_assigner",
    "get_potential",
    "register_credit_assigner",
    "register_potential",
]
