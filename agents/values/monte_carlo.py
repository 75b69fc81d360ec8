"""Values by trying: go on from each state several times, and average the scores.

A language model can be put back into any state of a text, so its value can be sampled there instead
of learned (Kazemnejad et al., 2024, "VinePPO: Refining Credit Assignment in RL Training of LLMs",
arXiv 2410.01679, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from textgym.agents.distribution import sample
from textgym.agents.environment import base_attribute
from textgym.checks import check_whole_number
from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv

    from textgym.agents.policy import LanguageModelPolicy
    from textgym.agents.rollout import Rollout
    from textgym.models import Completions

__all__ = [
    "MonteCarloValues",
    "State",
    "continue_states",
    "monte_carlo_values",
    "score_function",
]

_BATCH_SIZE = 256
"""Texts that are continued, and scored, together."""


class MonteCarloValues(NamedTuple):
    """What :func:`monte_carlo_values` returns."""

    values: Tensor  # (num_episodes, num_steps) float32, mean score; 0 outside the mask
    variances: Tensor  # (num_episodes, num_steps) float32, estimated variance of each mean, or NaN
    num_tokens: int  # sampled for it


class State(NamedTuple):
    """A text that can be continued."""

    prompt_ids: list[int]
    completion_ids: list[int]  # so far; it has not ended
    token_budget: int  # most tokens of the completion, at least one more than there are


def monte_carlo_values(
    policy: LanguageModelPolicy,
    rollout: Rollout,
    score: Callable[[Completions], Tensor],
    num_continuations: int,
    generator: torch.Generator,
) -> MonteCarloValues:
    """Estimate V of every state of a rollout by sampled continuations.

    A continuation follows the rules of the episode: its token budget, and no EOS before it is
    legal. So every value is the mean of independent samples of the score from that state, and an
    unbiased estimate. Continuations serve only as estimates, and are not trained on.

    With rewards that pay the score at the last token, VinePPO's advantage is
    :func:`textgym.agents.ppo.gae` of these values with λ = 0: r_t + γV(s_{t+1}) - V(s_t). At γ = 1
    it is unbiased, however few the continuations: the noise of V(s_{t+1}) has mean 0, and that of
    V(s_t) does not depend on the token chosen there. V knows neither shaping nor a KL penalty. With
    λ = 0, a token answers for its own penalty, and not for the penalties that follow from it.

    The cost is that of ``num_continuations`` completions per token, about T/2 tokens each: for
    completions of 16 tokens and 4 continuations, 34 times as many tokens as the rollout itself.

    Args:
        policy: The policy that played the rollout, with the same weights.
        rollout: Its episodes. They carry their token budgets if the environment's ``reset`` tells
            ``info["token_budget"]``.
        score: Scores finished texts, one number for each: see :func:`score_function`.
        num_continuations: K, at least 1.
        generator: Draws the tokens; a CPU generator, whatever the policy's device.

    Raises:
        InvalidArgumentError: If ``num_continuations`` is less than 1, or the token budgets are not
            known.
    """
    check_whole_number("num_continuations", num_continuations, 1)
    states = _states(rollout)
    repeated = [state for state in states for _ in range(num_continuations)]
    completions = continue_states(policy, repeated, generator)
    scores = _score(repeated, completions, score).view(-1, num_continuations)  # (num_states, K)

    mask = rollout.completion_mask.cpu()
    values, variances = torch.zeros(mask.shape), torch.zeros(mask.shape)
    # Boolean indexing runs row by row, in the order of the states.
    values[mask] = scores.mean(dim=1)
    variances[mask] = scores.var(dim=1) / num_continuations if num_continuations > 1 else torch.nan
    num_tokens = sum(
        len(ids) - len(state.completion_ids)
        for ids, state in zip(completions, repeated, strict=True)
    )
    device = rollout.completion_mask.device
    return MonteCarloValues(values.to(device), variances.to(device), num_tokens)


def score_function(env: gym.Env | VectorEnv) -> Callable[[Completions], Tensor]:
    """How a text environment scores finished texts, as a function of them.

    Raises:
        InvalidArgumentError: If the environment is not one of textgym's.
    """
    task = base_attribute(env, "task")
    if task is None:
        raise InvalidArgumentError(
            "env", env, "pass a text environment, or a function that scores texts."
        )
    return lambda texts: task.score(texts, frozenset()).score


@torch.no_grad()
def continue_states(
    policy: LanguageModelPolicy, states: Sequence[State], generator: torch.Generator
) -> list[list[int]]:
    """Complete texts from where they are.

    Args:
        policy: Chooses the tokens; its rules and its temperature shape the distribution.
        states: Where to start; equal states are completed independently.
        generator: Draws the tokens; a CPU generator.

    Returns:
        The finished completion of each state: the tokens that it had, and those that were sampled.
    """
    completions = [list(state.completion_ids) for state in states]
    # Texts that may go on for equally long are continued together, so that few rows wait.
    order = sorted(range(len(states)), key=lambda i: _tokens_left(states[i]))
    eos = policy.rules.eos_token_id
    with policy.reading() as reader:
        for first in range(0, len(order), _BATCH_SIZE):
            batch = order[first : first + _BATCH_SIZE]
            going_on = [True] * len(batch)
            while any(going_on):
                texts = [
                    states[i].prompt_ids + completions[i] if on else None
                    for i, on in zip(batch, going_on, strict=True)
                ]
                num_generated = torch.tensor([len(completions[i]) for i in batch])
                logits = reader.read(texts).logits.cpu()
                tokens = sample(policy.next_token_logprobs(logits, num_generated), generator)
                for row, token in enumerate(tokens.tolist()):
                    if going_on[row]:
                        i = batch[row]
                        completions[i].append(token)
                        is_full = len(completions[i]) == states[i].token_budget
                        going_on[row] = token != eos and not is_full
    return completions


def _tokens_left(state: State) -> int:
    return state.token_budget - len(state.completion_ids)


def _states(rollout: Rollout) -> list[State]:
    """The states in which the tokens of a rollout were chosen, episode after episode."""
    num_steps = rollout.completion_mask.shape[1]
    num_prompt = rollout.input_ids.shape[1] - num_steps
    states = []
    for ids, valid, length, budget in zip(
        rollout.input_ids.tolist(),
        rollout.attention_mask.tolist(),
        rollout.episode_lengths.tolist(),
        rollout.token_budgets.tolist(),
        strict=True,
    ):
        if budget < length:
            raise InvalidArgumentError(
                "rollout",
                rollout.token_budgets.tolist(),
                "the token budgets of the episodes are not known: let reset tell "
                'info["token_budget"].',
            )
        prompt = [ids[column] for column in range(num_prompt) if valid[column]]
        completion = ids[num_prompt : num_prompt + length]
        states += [State(prompt, completion[:t], budget) for t in range(length)]
    return states


def _score(
    states: Sequence[State],
    completions: Sequence[list[int]],
    score: Callable[[Completions], Tensor],
) -> Tensor:
    """Score finished completions in batches, float32 (len(states),), on the CPU."""
    from textgym.models import Completions  # Imported here: slow.

    scores = []
    for first in range(0, len(states), _BATCH_SIZE):
        rows = slice(first, first + _BATCH_SIZE)
        prompts = [state.prompt_ids for state in states[rows]]
        scores.append(score(Completions.from_lists(prompts, completions[rows])).float().cpu())
    return torch.cat(scores)
