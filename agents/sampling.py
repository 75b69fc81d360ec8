"""Completions from outside: what an agent asks an engine for, and checks on what it gets.

An agent samples its episodes from its own model. It can also leave that to an engine that is built
for it, such as a vLLM server. The engine is a :class:`Sampler`, passed as ``sampler=``. It gets
prompts as token ids and returns token ids, with the log-probability of each. The agent plays them
through the environment, one step at a time, so rewards, credit and scores are those of any other
rollout.

**Which distribution.** An agent's policy is not the bare softmax of the model. It divides the
logits by the temperature, masks illegal tokens, and normalises the rest
(:mod:`textgym.agents.distribution`). Illegal are EOS before ``rules.min_new_tokens`` tokens, and
ids of ``rules.num_actions`` or more. A sampler draws from this distribution, whole: no top-k,
top-p, min-p or penalties. And it returns log-probabilities under the distribution that it drew
from, not under the one before temperature and masks. :mod:`textgym.agents.importance` corrects for
small differences; :mod:`textgym.agents.mismatch` warns of large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

from textgym.errors import InvalidArgumentError

from .distribution import ActionRules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "SampledCompletion",
    "Sampler",
    "SamplingRequest",
    "as_sampler",
    "check_completions",
]

_ROUNDING = 1e-5
"""A log-probability may be above 0 by this much: log-softmax rounds."""


@dataclass(frozen=True)
class SamplingRequest:
    """One completion that a sampler is asked for."""

    prompt_ids: list[int]
    """Token ids of the prompt; at least one."""
    token_budget: int
    """The completion ends with EOS, or after this many tokens, EOS included."""
    seed: int
    """For the random numbers of this completion, from 0 to 2³¹ − 2. Requests with the same prompt
    have different seeds."""


@dataclass(frozen=True)
class SampledCompletion:
    """What a sampler returns for one request."""

    token_ids: Sequence[int]
    """The generated tokens, up to and including EOS."""
    logprobs: Sequence[float]
    """Log-probability of each, in nats, under the distribution that it was drawn from."""


class Sampler(Protocol):
    """Samples the completions of a rollout. Pass an object as ``sampler`` of an agent.

    A checkpoint does not hold it: whoever loads an agent passes it again, or ``"policy"``.
    """

    def update(self, model: PreTrainedModel) -> None:
        """Take over the weights of the policy. Called before each rollout.

        The rollout must be sampled with these weights, so do not return before they are in use,
        and drop keys and values that were cached for earlier ones.

        Args:
            model: The language model that is trained, with adapters if it has any. It must not be
                changed.
        """

    def sample(
        self, requests: Sequence[SamplingRequest], rules: ActionRules, temperature: float
    ) -> Sequence[SampledCompletion]:
        """Complete prompts; all episodes of a rollout at once.

        Args:
            requests: Prompts with their budgets. The members of a group follow each other.
            rules: Which tokens are legal.
            temperature: Divides the logits.

        Returns:
            One completion per request, in the same order.
        """


def as_sampler(value: Any) -> Sampler:
    """Make sure that an object can be used as a sampler.

    Raises:
        InvalidArgumentError: If it lacks a method of :class:`Sampler`.
    """
    for method in ("update", "sample"):
        if not callable(getattr(value, method, None)):
            raise InvalidArgumentError(
                "sampler",
                value,
                f"it has no method {method}: pass an object like textgym.agents.Sampler, or "
                '"policy" to sample from the policy itself.',
            )
    sampler: Sampler = value
    return sampler


def check_completions(
    completions: Sequence[SampledCompletion],
    requests: Sequence[SamplingRequest],
    rules: ActionRules,
) -> None:
    """Make sure that completions could have been sampled from the policy, and are whole.

    Args:
        completions: What a sampler returned.
        requests: What it was asked for.
        rules: Which tokens are legal.

    Raises:
        InvalidArgumentError: If there are too few or too many completions, or one of them is too
            long or too short, goes on after EOS, stops without it, has an illegal token, or has
            log-probabilities that are not one finite number of at most 0 per token. It names the
            episode and its prompt.
    """
    if len(completions) != len(requests):
        raise InvalidArgumentError(
            "sampler",
            len(completions),
            f"sample returned this many completions for {len(requests)} requests: return one for "
            "each, in the same order.",
        )
    for episode, (completion, request) in enumerate(zip(completions, requests, strict=True)):
        fault = _fault_in_tokens(completion.token_ids, request.token_budget, rules)
        fault = fault or _fault_in_logprobs(completion)
        if fault is not None:
            start = ", ".join(map(str, request.prompt_ids[:8]))
            more = ", …" if len(request.prompt_ids) > 8 else ""
            raise InvalidArgumentError(
                "sampler",
                list(completion.token_ids),
                f"the completion of episode {episode} (prompt [{start}{more}], budget "
                f"{request.token_budget}) {fault}",
            )


def _fault_in_tokens(tokens: Sequence[int], budget: int, rules: ActionRules) -> str | None:
    """What is wrong with the tokens of a completion, with a remedy; None if they are right."""
    eos = rules.eos_token_id
    for step, token in enumerate(tokens):
        if not isinstance(token, Integral) or not 0 <= token < rules.num_actions:
            return (
                f"has {token!r} as token {step}, which is no action: the environment has "
                f"{rules.num_actions} actions. Mask the other rows of the model's vocabulary."
            )
        if token == eos and step < rules.min_new_tokens:
            return (
                f"is too short: token {step} is EOS ({eos}), which is illegal before "
                f"{rules.min_new_tokens} tokens. Mask it as rules.min_new_tokens says."
            )
        if token == eos and step < len(tokens) - 1:
            return (
                f"goes on after EOS ({eos}), its token {step}: let EOS end it, or cut the rest off."
            )
    if len(tokens) > budget:
        return f"is too long, with {len(tokens)} tokens: generate at most the request's budget."
    if len(tokens) < budget and (len(tokens) == 0 or tokens[-1] != eos):
        return (
            f"stops after {len(tokens)} tokens, without EOS ({eos}) and before the budget: return "
            "EOS with the other tokens, and let nothing else stop it, such as stop strings, other "
            "end tokens, or the engine's own limit of the length."
        )
    return None


def _fault_in_logprobs(completion: SampledCompletion) -> str | None:
    """What is wrong with the log-probabilities, with a remedy; None if they are right."""
    num_tokens, num_logprobs = len(completion.token_ids), len(completion.logprobs)
    if num_logprobs != num_tokens:
        return (
            f"has {num_tokens} tokens and {num_logprobs} log-probabilities: return one for each "
            "token, EOS included."
        )
    for step, logprob in enumerate(completion.logprobs):
        if not math.isfinite(logprob):
            return (
                f"has the log-probability {logprob} at token {step}: a token that was sampled has "
                "a finite one. Return that of the distribution that it was sampled from."
            )
        if logprob > _ROUNDING:
            return (
                f"has the log-probability {logprob} at token {step}, above 0: return natural "
                "logarithms of probabilities, not logits or negated logarithms."
            )
    return None
