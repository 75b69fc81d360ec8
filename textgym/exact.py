"""Exact policy gradients and optimal actions on enumerated decision processes.

If every trajectory of a process can be listed, what an algorithm estimates from samples can be
computed exactly: the value and the gradient of a policy for any rewards, and the optimal actions.
Rewards and other values per step are arrays of shape (num_trajectories, num_steps). Entries after
the end of a trajectory are ignored.

The examples use texts of up to two tokens in which token 1 ends the text: 00, 01 and 1.

>>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
>>> texts.states
array([[0, 1],
       [0, 1],
       [0, 0]])
>>> texts.mask.astype(int)
array([[1, 1],
       [1, 1],
       [1, 0]])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textgym.errors import InvalidArgumentError

__all__ = [
    "Trajectories",
    "action_values",
    "cosine",
    "expected_return",
    "is_causal",
    "optimal_actions",
    "policy_gradient",
    "policy_probabilities",
    "returns_to_go",
    "state_values",
    "trajectory_probabilities",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trajectories:
    """Every trajectory of a deterministic process, listed once.

    States are numbered, and a state includes the number of steps taken: the same number must not
    appear in two columns.

    Attributes:
        states: The state in which each action was taken, int64, shape
            (num_trajectories, num_steps).
        actions: The action taken, int64, same shape.
        mask: True from the first to the last step of each trajectory, bool, same shape.
        num_states: Number of states.
        num_actions: Number of actions, including illegal ones.

    Raises:
        InvalidArgumentError: If a state appears in two columns, or a number is out of range.
    """

    states: NDArray[np.int64]
    actions: NDArray[np.int64]
    mask: NDArray[np.bool_]
    num_states: int
    num_actions: int

    def __post_init__(self) -> None:
        for name, size in (("states", self.num_states), ("actions", self.num_actions)):
            numbers = getattr(self, name)[self.mask]
            if numbers.size == 0 or numbers.min() < 0 or numbers.max() >= size:
                raise InvalidArgumentError(name, numbers, f"must be numbers from 0 to {size - 1}")
        step = np.broadcast_to(np.arange(self.mask.shape[1]), self.mask.shape)[self.mask]
        column = np.zeros(self.num_states, dtype=np.int64)
        column[self.states[self.mask]] = step
        if (column[self.states[self.mask]] != step).any():
            raise InvalidArgumentError(
                "states",
                self.states,
                "a state must belong to one step: make the number of steps part of the state",
            )

    @classmethod
    def of_texts(
        cls,
        texts: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        num_actions: int | None = None,
    ) -> Trajectories:
        """Build the trajectories of texts that grow by one token per step.

        A state is the start and the tokens so far.

        Args:
            texts: The tokens added in each trajectory, at least one.
            starts: Number of each trajectory's start (its prompt); None if all share one start.
            num_actions: Size of the vocabulary; None for the largest token plus one.

        Raises:
            InvalidArgumentError: If a text is empty, or if there is not one start per text.
        """
        lengths = np.array([len(text) for text in texts])
        if lengths.size == 0 or lengths.min() == 0:
            raise InvalidArgumentError("texts", texts, "pass texts of at least one token each")
        came_from = np.asarray([0] * len(texts) if starts is None else starts, dtype=np.int64)
        if came_from.shape != lengths.shape:
            raise InvalidArgumentError("starts", starts, f"pass {len(texts)} numbers, one per text")
        mask = np.arange(lengths.max()) < lengths[:, None]
        actions, states = np.zeros((2, *mask.shape), dtype=np.int64)
        actions[mask] = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
        size = int(actions.max()) + 1 if num_actions is None else num_actions
        num_states = 0
        for step, goes_on in enumerate(mask.T):
            distinct, number = np.unique(came_from[goes_on], return_inverse=True)
            states[goes_on, step] = num_states + number
            num_states += len(distinct)
            came_from = states[:, step] * size + actions[:, step]
        return cls(states, actions, mask, num_states, size)

    @property
    def legal(self) -> NDArray[np.bool_]:
        """Whether some trajectory takes an action in a state, bool, (num_states, num_actions)."""
        return self.sum_by_action(np.ones(self.mask.shape)) > 0

    def sum_by_action(self, values: Floats) -> Floats:
        """Sum values over all steps with the same state and action.

        Args:
            values: One value per step, shape (num_trajectories, num_steps).

        Returns:
            Shape (num_states, num_actions), 0 where there is no step.
        """
        index = (self.states * self.num_actions + self.actions)[self.mask]
        size = self.num_states * self.num_actions
        total = np.bincount(index, weights=values[self.mask], minlength=size)
        return total.astype(np.float64).reshape(self.num_states, self.num_actions)


def returns_to_go(rewards: Floats, mask: NDArray[np.bool_], gamma: float = 1.0) -> Floats:
    """Compute the discounted reward to go from each step, G_t = Σ_{k≥t} γ^(k-t) r_k.

    Args:
        rewards: Shape (num_trajectories, num_steps).
        mask: True at the steps of each trajectory, bool, same shape.
        gamma: Discount factor.

    Returns:
        Same shape, 0 outside the mask. The first column is the return of the trajectory.

    >>> returns_to_go(np.array([[1.0, 4.0, 8.0]]), np.array([[True, True, True]]), gamma=0.5)
    array([[5., 8., 8.]])
    """
    result = np.where(mask, rewards, 0.0).astype(np.float64)
    for step in reversed(range(result.shape[1] - 1)):
        result[:, step] += gamma * result[:, step + 1]
    return result


def policy_probabilities(trajectories: Trajectories, logits: Floats) -> Floats:
    """Compute the softmax policy π(a|s) over the legal actions of each state.

    Args:
        trajectories: The process.
        logits: Shape (num_states, num_actions). Logits of illegal actions are ignored.

    Returns:
        Same shape. Each row sums to 1.

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> policy_probabilities(texts, np.log([[1.0, 3.0], [1.0, 1.0]]))
    array([[0.25, 0.75],
           [0.5 , 0.5 ]])
    """
    allowed = np.where(trajectories.legal, logits, -np.inf)
    weights = np.exp(allowed - allowed.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def trajectory_probabilities(trajectories: Trajectories, logits: Floats) -> Floats:
    """Compute the probability of each trajectory when all starts are equally likely.

    Args:
        trajectories: The process.
        logits: Logits of the softmax policy, shape (num_states, num_actions).

    Returns:
        Shape (num_trajectories,), summing to 1.

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> trajectory_probabilities(texts, np.log([[1.0, 3.0], [1.0, 1.0]]))
    array([0.125, 0.125, 0.75 ])
    """
    chosen = policy_probabilities(trajectories, logits)[trajectories.states, trajectories.actions]
    num_starts = len(np.unique(trajectories.states[:, 0]))
    return np.where(trajectories.mask, chosen, 1.0).prod(axis=1) / num_starts


def expected_return(
    trajectories: Trajectories, logits: Floats, rewards: Floats, gamma: float = 1.0
) -> float:
    """Compute the value of a policy, Σ_τ p(τ) Σ_t γ^t r_t.

    Args:
        trajectories: The process.
        logits: Logits of the softmax policy, shape (num_states, num_actions).
        rewards: Shape (num_trajectories, num_steps).
        gamma: Discount factor.

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> rewards = np.array([[0.0, 8.0], [0.0, 0.0], [4.0, 0.0]])
    >>> expected_return(texts, np.log([[1.0, 3.0], [1.0, 1.0]]), rewards)
    4.0
    """
    probabilities = trajectory_probabilities(trajectories, logits)
    return float(probabilities @ returns_to_go(rewards, trajectories.mask, gamma)[:, 0])


def state_values(trajectories: Trajectories, logits: Floats, returns: Floats) -> Floats:
    """Compute the mean return from each state, V(s) = E[G_t | s_t = s].

    Args:
        trajectories: The process.
        logits: Logits of the softmax policy, shape (num_states, num_actions).
        returns: G_t from :func:`returns_to_go`, shape (num_trajectories, num_steps).

    Returns:
        Shape (num_states,).

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> returns = np.array([[8.0, 8.0], [0.0, 0.0], [4.0, 0.0]])
    >>> state_values(texts, np.log([[1.0, 3.0], [1.0, 1.0]]), returns)
    array([4., 4.])
    """
    weights = np.broadcast_to(
        trajectory_probabilities(trajectories, logits)[:, None], returns.shape
    )
    total = trajectories.sum_by_action(weights * returns).sum(axis=1)
    return total / trajectories.sum_by_action(weights).sum(axis=1)


def policy_gradient(trajectories: Trajectories, logits: Floats, advantages: Floats) -> Floats:
    """Compute the gradient that a policy-gradient method follows in expectation.

    g = Σ_τ p(τ) Σ_t A_t ∇ log π(a_t|s_t) with respect to the logits of a softmax policy (Williams,
    1992; Sutton et al., 1999). With A_t = γ^t G_t it is the gradient of the policy's value, if the
    rewards do not depend on later actions (:func:`is_causal`). Agents usually leave out the γ^t and
    replace G_t, by an advantage for instance; pass whatever they use.

    Args:
        trajectories: The process.
        logits: Logits of the softmax policy, shape (num_states, num_actions).
        advantages: A_t, shape (num_trajectories, num_steps).

    Returns:
        Shape (num_states, num_actions), 0 at illegal actions. Every row sums to 0.

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> returns = np.array([[8.0, 8.0], [0.0, 0.0], [3.0, 0.0]])
    >>> policy_gradient(texts, np.zeros((2, 2)), returns)
    array([[ 0.25, -0.25],
           [ 1.  , -1.  ]])
    """
    weights = trajectory_probabilities(trajectories, logits)[:, None] * advantages
    taken = trajectories.sum_by_action(weights)
    # ∂ log π(a|s) / ∂ logit(b|s) = 1[a = b] - π(b|s)
    expected = taken.sum(axis=1, keepdims=True) * policy_probabilities(trajectories, logits)
    return taken - expected


def is_causal(trajectories: Trajectories, rewards: Floats, tolerance: float = 1e-5) -> bool:
    """Check whether the reward of a step is a function of its state and action.

    Args:
        trajectories: The process.
        rewards: Shape (num_trajectories, num_steps).
        tolerance: Largest deviation of a reward from the mean of its state and action.

    Here the reward of the first token, a 0, depends on the token after it:

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> is_causal(texts, np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    False
    """
    deviation = np.abs(rewards - _reward_of_action(trajectories, rewards))
    return bool((deviation <= tolerance)[trajectories.mask].all())


def _reward_of_action(trajectories: Trajectories, rewards: Floats) -> Floats:
    """Mean reward of each step's state and action, shape (num_trajectories, num_steps)."""
    total = trajectories.sum_by_action(rewards)
    count = trajectories.sum_by_action(np.ones_like(rewards))
    index = trajectories.states, trajectories.actions
    return total[index] / count[index].clip(min=1)


def action_values(
    trajectories: Trajectories, rewards: Floats, gamma: float = 1.0, tolerance: float = 1e-5
) -> Floats:
    """Compute Q*(s, a), the value of each action if optimal actions follow, backwards in time.

    Args:
        trajectories: The process.
        rewards: A function of state and action, shape (num_trajectories, num_steps).
        gamma: Discount factor.
        tolerance: Largest deviation of a reward from the mean of its state and action.

    Returns:
        Shape (num_states, num_actions), -inf at illegal actions.

    Raises:
        InvalidArgumentError: If the rewards are not causal, because actions then have no value.

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> action_values(texts, np.array([[0.0, 8.0], [0.0, 0.0], [5.0, 0.0]]), gamma=0.5)
    array([[4., 5.],
           [8., 0.]])
    """
    if not is_causal(trajectories, rewards, tolerance):
        raise InvalidArgumentError(
            "rewards",
            rewards.shape,
            "the reward of a step depends on later actions; pass rewards that depend on state and "
            "action alone",
        )
    paid = _reward_of_action(trajectories, rewards)
    values = np.full((trajectories.num_states, trajectories.num_actions), -np.inf)
    following = np.zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        present, state = trajectories.mask[:, step], trajectories.states[:, step]
        index = state[present], trajectories.actions[present, step]
        values[index] = (paid[:, step] + gamma * following)[present]
        following = np.where(present, values[state].max(axis=1), 0.0)
    return values


def optimal_actions(
    trajectories: Trajectories, rewards: Floats, gamma: float = 1.0, tolerance: float = 1e-5
) -> NDArray[np.bool_]:
    """Find the optimal actions in every state.

    Args:
        trajectories: The process.
        rewards: A function of state and action, shape (num_trajectories, num_steps).
        gamma: Discount factor.
        tolerance: How far an optimal action's value may fall below the best one, and how far a
            reward may deviate from the mean of its state and action.

    Returns:
        Shape (num_states, num_actions), bool.

    Raises:
        InvalidArgumentError: If the rewards are not causal.

    >>> texts = Trajectories.of_texts([[0, 0], [0, 1], [1]])
    >>> optimal_actions(texts, np.array([[0.0, 8.0], [0.0, 0.0], [4.0, 0.0]]), 0.5).astype(int)
    array([[1, 1],
           [1, 0]])
    """
    values = action_values(trajectories, rewards, gamma, tolerance)
    return values >= values.max(axis=1, keepdims=True) - tolerance


def cosine(one: Floats, other: Floats) -> float:
    """Compute the cosine of the angle between two arrays of the same shape, taken as vectors.

    >>> cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))
    0.96
    """
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))
