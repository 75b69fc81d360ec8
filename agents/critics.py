"""Critics: the value of the states of a rollout, V(s) = what is known + what is learned.

==========================  ==============================  ========================================
critic                      known                           learned
==========================  ==============================  ========================================
:class:`HeadCritic`         0                               a head on the policy, 0 at the start
:class:`RewardModelCritic`  the score of the text so far    the same head
:class:`SeparateCritic`     0                               a network of its own, the reward model
                                                            at the start
:class:`NoCritic`           the mean reward to go of the    nothing
                            other completions
==========================  ==============================  ========================================

V is the value of the reward still to come. The critics that start from the reward model subtract
what has been paid before the end, as credit or by shaping. They also notice whether returns begin
at zero or at the score of the prompt alone (:mod:`textgym.credit.start`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from textgym.errors import InvalidArgumentError

from .checkpoint import describe_model, model_from_description
from .environment import base_attribute
from .lora import merged
from .policy import in_float32, parse_autocast
from .returns import mean_of_others, returns_to_go

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from textgym.models import RewardModel

    from .agent import Agent
    from .policy import Evaluation
    from .rollout import Rollout

__all__ = [
    "CRITICS",
    "Critic",
    "HeadCritic",
    "NoCritic",
    "RewardModelCritic",
    "SeparateCritic",
    "at_cut",
    "paid_before",
]

Texts = tuple[Tensor, Tensor, Tensor]
"""Token ids, attention mask and completion mask, as ``policy.evaluate`` takes them."""


class Critic:
    """Values of the states of a rollout. Pass an object of your own as ``critic`` of PPO.

    A subclass overrides :meth:`known`, :meth:`learned` or both. What it knows is computed once per
    rollout, before the update; what it learns is computed again for each minibatch, with gradient.

    Attributes:
        uses_lambda: Whether V is a value of its state alone, so that the difference of two values
            says something. False: advantages are sampled returns minus V, as if λ were 1.
        network: Parameters of the critic's own, trained with ``critic_learning_rate``; None if it
            has none, or only the policy's value head.
    """

    uses_lambda: ClassVar[bool] = True
    network: nn.Module | None = None

    def set_up(self, agent: Agent) -> None:
        """Prepare for an agent; called once, before training.

        A critic that samples uses ``self.generator``; checkpoints hold its state.

        Args:
            agent: PPO, with ``policy`` and ``config``. Its ``env`` is None if it only predicts.

        Raises:
            InvalidArgumentError: If the critic does not fit.
        """
        self.policy = agent.policy
        self.config: Any = agent.config  # PPOConfig; its module imports this one
        self.generator = agent._generators["critic"]

    def known(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """The part of the values that the update does not change.

        Args:
            rollout: The episodes.
            rewards: What the agent learns from: credit minus the KL penalty,
                (num_episodes, num_steps).

        Returns:
            float32 (num_episodes, num_steps).
        """
        return torch.zeros_like(rewards)

    def learned(self, texts: Texts, evaluation: Evaluation) -> Tensor:
        """The part of the values that is trained, for a minibatch; by default the value head.

        Args:
            texts: Token ids, attention mask and completion mask.
            evaluation: What the policy's forward pass over these texts gave.

        Returns:
            float32 (batch, num_steps), with gradient.
        """
        return evaluation.values

    def after_truncation(self, rollout: Rollout) -> Tensor:
        """The value of the state that a truncated episode was left in.

        Returns:
            float32 (num_episodes, num_steps): at the last step of each truncated episode, 0
            elsewhere.

        Raises:
            InvalidArgumentError: If the critic cannot value it.
        """
        raise InvalidArgumentError(
            "env",
            "truncated",
            f"an episode was truncated, and {type(self).__name__} cannot value the rest of it: let "
            "the environment end it (max_new_tokens), without TimeLimit, or use another critic.",
        )

    def parameters(self) -> list[nn.Parameter]:
        """What the critic trains: its network, or else the value head; empty if it learns nothing.

        Only this is trained while the critic warms up.
        """
        return list((self.network or self.policy.value_head).parameters())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the policy's weights.

        It is also what undoing an interrupted iteration restores, unless the critic has a network:
        then only the parameters of the network are restored.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` gave."""


class HeadCritic(Critic):
    """A linear head on the policy's last hidden state, which starts at 0: the usual critic of PPO.

    It shares the trunk with the policy, and costs no forward pass.
    """

    def after_truncation(self, rollout: Rollout) -> Tensor:
        """What the head says; see :class:`Critic`."""
        num_steps = rollout.completion_mask.shape[1]
        with torch.no_grad():
            _, values = self.policy(rollout.input_ids, rollout.attention_mask, num_logits=num_steps)
        return at_cut(values, rollout)


class RewardModelCritic(HeadCritic):
    """The reward model's score of the text so far, corrected by the head on the policy.

    The score of a prefix predicts the final score well from the first token on, so advantages are
    good from the first iteration on. The head learns the rest: the KL penalty still to come, and
    what the policy does otherwise than the texts that the reward model knows. It is meant for
    γ = 1; with a smaller γ, the head also has to learn the discount.

    V(s_t) starts as the prefix score minus the credit that was paid before: the score still to
    come. With sparse reward these are the advantages of prefix-score shaping with a critic that
    starts at 0, for every λ (Wiewiora 2003, arXiv 1106.5267). With credit that sums to the score,
    paid in whatever order, they are the same again: so hindsight credit has no effect on this
    critic's advantages.

    Cost: one forward pass of the reward model over the rollout; an encoder needs one per prefix.
    """

    def set_up(self, agent: Agent) -> None:
        """Find the environment's reward model."""
        super().set_up(agent)
        if agent.env is not None:
            self._reward_model = _reward_model_of(agent.env)

    def known(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """The prefix score minus what was paid before; see :class:`Critic`."""
        scores = _prefix_scores(self._reward_model, rollout)
        known = scores[:, :-1] - paid_before(rollout, scores[:, 0])
        return known.masked_fill(~rollout.completion_mask, 0.0)

    def after_truncation(self, rollout: Rollout) -> Tensor:
        """The score of the text minus what was paid, plus the head; see :class:`Critic`."""
        scores = _prefix_scores(self._reward_model, rollout)
        paid = paid_before(rollout, scores[:, 0]) + rollout.credit
        return at_cut(scores[:, 1:] - paid, rollout) + super().after_truncation(rollout)


class SeparateCritic(Critic):
    """A network of its own, which starts as a copy of the reward model and is trained as a critic.

    So the policy's trunk is not pulled by the value loss, and the critic has its own learning rate
    (``critic_learning_rate``). V starts as the score of the text so far, as with
    :class:`RewardModelCritic`, minus what was paid before.

    Starting the critic as the reward model is usual in RLHF (Ouyang et al. 2022, arXiv 2203.02155).
    Yuan et al. (2025, "What's Behind PPO's Collapse in Long-CoT?",
    arXiv 2503.01491) find it biased, and train it before the policy: ``critic_warmup``.

    Cost: a forward and a backward pass of the reward model per minibatch, the memory of another
    trained network, and a decoder as the reward model.
    """

    def set_up(self, agent: Agent) -> None:
        """Copy the environment's reward model."""
        super().set_up(agent)
        self._score: Callable[[Tensor], Tensor] | None = None  # from logits
        if agent.env is None:
            return  # The network comes from the checkpoint, and values no text.
        self._reward_model = reward_model = _reward_model_of(agent.env)
        if not reward_model.is_causal:
            remedy = (
                "the environment's reward model is no decoder with the policy's tokenizer, so a "
                'copy cannot score the text up to every token; use another critic, such as "head".'
            )
            raise InvalidArgumentError("critic", "separate", remedy)
        self._score = reward_model._score
        model = in_float32(
            copy.deepcopy(reward_model.model), "reward_model", 'use another critic, such as "head"'
        )
        scale = reward_model.score_mean, reward_model.score_std
        network = _PrefixScorer(merged(model), self._score, *scale).to(self.config.device)
        # Whoever uses a reward model may have frozen it; the copy is trained.
        self.network = network.requires_grad_(True)

    def known(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Minus what was paid before; see :class:`Critic`."""
        start = _prefix_scores(self._reward_model, rollout)[:, 0]
        return -paid_before(rollout, start).masked_fill(~rollout.completion_mask, 0.0)

    def learned(self, texts: Texts, evaluation: Evaluation) -> Tensor:
        """What the network says; see :class:`Critic`."""
        input_ids, attention_mask, completion_mask = texts
        num_steps = completion_mask.shape[1]
        values = self._run(input_ids[:, :-1], attention_mask[:, :-1])[:, -num_steps:]
        return values.masked_fill(~completion_mask, 0.0)

    def after_truncation(self, rollout: Rollout) -> Tensor:
        """What the network says of the text, minus what was paid; see :class:`Critic`."""
        num_steps = rollout.completion_mask.shape[1]
        with torch.no_grad():
            values = self._run(rollout.input_ids, rollout.attention_mask)[:, -num_steps:]
        start = _prefix_scores(self._reward_model, rollout)[:, 0]
        return at_cut(values - paid_before(rollout, start) - rollout.credit, rollout)

    def state_dict(self) -> dict[str, Any]:
        """The network's architecture and weights; see :class:`Critic`."""
        assert isinstance(self.network, _PrefixScorer)
        return {
            "model": describe_model(self.network.model),
            "scale": [self.network.score_mean, self.network.score_std],
            "weights": self.network.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Build the network that was saved; only its score comes from the environment."""
        from transformers import AutoModelForSequenceClassification

        model = model_from_description(state["model"], AutoModelForSequenceClassification)
        self.network = _PrefixScorer(model, self._score, *state["scale"]).to(self.config.device)
        self.network.load_state_dict(state["weights"])

    def _run(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert self.network is not None
        dtype = parse_autocast(self.config.dtype)
        device = torch.device(self.config.device).type
        with torch.autocast(device, dtype) if dtype else nullcontext():
            values: Tensor = self.network(input_ids, attention_mask)
        return values


class NoCritic(Critic):
    """No critic: the advantage is the reward to go minus the mean of the others at the same step.

    The others are those of the same prompt if ``group_size`` is above 1, and all episodes of the
    iteration if not; see :func:`textgym.agents.returns.mean_of_others`. The gradient is unbiased
    before it is clipped, and noisier than with a good critic.
    """

    uses_lambda = False

    def set_up(self, agent: Agent) -> None:
        """Check that there is something to compare."""
        super().set_up(agent)
        config = self.config
        self._group_size = config.group_size if config.group_size > 1 else None
        if config.episodes_per_iteration < 2:
            raise InvalidArgumentError(
                "episodes_per_iteration",
                config.episodes_per_iteration,
                "must be at least 2 without a critic: episodes are compared with each other.",
            )
        if agent.processes.size > 1 and self._group_size is None:
            remedy = "must be above 1 without a critic: processes do not see each other's episodes."
            raise InvalidArgumentError("group_size", config.group_size, remedy)

    def parameters(self) -> list[nn.Parameter]:
        """None; see :class:`Critic`."""
        return []

    def known(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """The mean of the others' rewards to go; see :class:`Critic`."""
        mask = rollout.completion_mask
        to_go = returns_to_go(rewards, mask, self.config.gamma)
        return mean_of_others(to_go, mask, self._group_size or len(mask))

    def learned(self, texts: Texts, evaluation: Evaluation) -> Tensor:
        """0; see :class:`Critic`."""
        return torch.zeros_like(evaluation.values)


CRITICS: dict[str, Callable[[], Critic]] = {
    "head": HeadCritic,
    "reward-model": RewardModelCritic,
    "separate": SeparateCritic,
    "none": NoCritic,
}
"""The critics by name."""


class _PrefixScorer(nn.Module):
    """A trainable copy of a reward model, which scores the text up to every token.

    Args:
        model: A decoder with a classification head.
        score: The reward model's, from logits; None if no text is scored.
        score_mean, score_std: The score is centred and scaled by them.
    """

    def __init__(
        self,
        model: Any,
        score: Callable[[Tensor], Tensor] | None,
        score_mean: float,
        score_std: float,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.score, self.score_mean, self.score_std = score, score_mean, score_std
        model.config.use_cache = False  # No token follows.

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores, float32 (batch, num_tokens), 0 at padding, which may be on any side."""
        from textgym.models.completions import Completions, LeftAligned

        assert self.score is not None
        nothing = torch.zeros_like(attention_mask)
        text = LeftAligned.of(Completions(input_ids, attention_mask, nothing))
        states = self.model.base_model(
            input_ids=text.input_ids, attention_mask=text.attention_mask.long()
        ).last_hidden_state
        scores = self.score(self.model.score(states).float())
        return text.restore((scores - self.score_mean) / self.score_std)


def _reward_model_of(env: VectorEnv) -> RewardModel:
    reward_model = base_attribute(env, "reward_model")
    if reward_model is None:
        remedy = (
            'the environment has no attribute reward_model: use another critic, such as "head".'
        )
        raise InvalidArgumentError("critic", "reward-model or separate", remedy)
    return reward_model  # type: ignore[no-any-return]


def _prefix_scores(reward_model: RewardModel, rollout: Rollout) -> Tensor:
    """The score of the text before each token and after the last, (num_episodes, 1 + num_steps)."""
    from textgym.models import Completions, PrefixScores  # Imported here: slow.

    num_steps = rollout.completion_mask.shape[1]
    num_prompt = rollout.input_ids.shape[1] - num_steps
    completions = Completions(
        rollout.input_ids, rollout.attention_mask, pad(rollout.completion_mask, (num_prompt, 0))
    )
    scores = reward_model.read(completions, [PrefixScores()])[PrefixScores()]
    return scores[:, num_prompt - 1 :].to(rollout.credit)


def paid_before(rollout: Rollout, start_values: Tensor) -> Tensor:
    """What has been paid of the score when each token is chosen.

    Credit that is measured from the prompt sums to less than the score, by the value of the prompt
    alone. What is missing then counts as paid from the start.

    Args:
        rollout: The episodes.
        start_values: Value of each prompt alone, (num_episodes,). They are missing if the scores
            less them are closer to the sums of the credit than the scores are.

    Returns:
        (num_episodes, num_steps)
    """
    finished = ~rollout.truncated
    missing = (rollout.scores - rollout.credit.sum(dim=1))[finished]
    begins_at_prompt = (missing - start_values[finished]).abs().sum() < missing.abs().sum()
    start = start_values if begins_at_prompt else torch.zeros_like(start_values)
    return start[:, None] + rollout.credit.cumsum(dim=1) - rollout.credit


def at_cut(values: Tensor, rollout: Rollout) -> Tensor:
    """Values at the last step of each truncated episode, 0 elsewhere, (num_episodes, num_steps)."""
    columns = torch.arange(values.shape[1], device=values.device)
    is_last = columns == rollout.episode_lengths[:, None] - 1
    return values.masked_fill(~(is_last & rollout.truncated[:, None]), 0.0)
