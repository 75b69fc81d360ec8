"""Values of states that no critic has to learn.

==========================  =========================================  =============================
values                      what they cost                             whose values they are
==========================  =========================================  =============================
:func:`potential_values`    a forward pass of the reward model         the potential's; with
                                                                       :func:`fit_reference_value`,
                                                                       the reference policy's
:func:`monte_carlo_values`  some completions for every token           the policy's, with noise
:func:`prefix_tree_values`  nothing: other completions of the prompt   the policy's, with noise,
                                                                       where completions overlap
==========================  =========================================  =============================

All are V of the state in which each token was chosen, float32 (num_episodes, num_steps), as
:func:`textgym.agents.ppo.gae` takes it. As critics of PPO they are :class:`PotentialCritic`,
:class:`MonteCarloCritic` and :class:`PrefixTreeCritic`.
"""

from .critics import MonteCarloCritic, PotentialCritic, PrefixTreeCritic
from .monte_carlo import MonteCarloValues, monte_carlo_values, score_function
from .potential import potential_values
from .prefix_tree import prefix_tree_values
from .reference import ReferenceFit, fit_reference_value

__all__ = [
    "MonteCarloCritic",
    "MonteCarloValues",
    "PotentialCritic",
    "PrefixTreeCritic",
    "ReferenceFit",
    "fit_reference_value",
    "monte_carlo_values",
    "potential_values",
    "prefix_tree_values",
    "score_function",
]
