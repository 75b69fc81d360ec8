"""The KL penalty for the on-policy algorithms of Stable-Baselines3."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from textgym.errors import InvalidArgumentError

from .policy import LanguageModelPolicyMethods
from .rollout_buffer import add_to_rewards, check_has_rollouts, check_rewards_as_paid

__all__ = ["KLPenaltyCallback"]


class KLPenaltyCallback(BaseCallback):
    """Makes a language model pay for leaving the model that it was made of.

    Each token's reward in the rollout gets −coef · (log π(token) − log π_ref(token)) added, and
    advantages and returns change with it (Ziegler et al. 2019, arXiv 1909.08593, section 2). π is
    the policy that sampled the token. π_ref is the reference policy: a frozen copy of the model
    that was passed as ``policy_kwargs=dict(model=...)``, also after ``load``. Both are normalised
    over the same legal tokens, at the same temperature. A loaded model must not be changed in the
    meantime. The logged episode returns stay those of the environment.

    It can be combined with :class:`textgym.agents.sb3.HindsightCreditCallback`, in any order.

    Each rollout logs ``rollout/kl``: log π − log π_ref summed over an episode, in nats, averaged
    over the episodes that ended in it. The mean estimates the KL divergence; a single episode may
    be negative. Nothing is logged if no episode ended.

    Cost: the reference policy takes memory for a second model, and reads the new token of each text
    in every step of a rollout. That is as much as sampling costs.

    Args:
        coef: Weight of the penalty, in units of the reward per nat; with 0 it only logs.

    Raises:
        InvalidArgumentError: If ``coef`` is not a finite number of at least 0. When training
            starts, if the algorithm has no rollout buffer, its policy is no language model, or the
            environment normalises rewards.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from stable_baselines3 import PPO
        >>> from textgym.agents.sb3 import LanguageModelPolicy
        >>> from textgym.wrappers import IllegalToken
        >>> env = IllegalToken(gym.make("ABC-RLHF-v0"))
        >>> agent = PPO(LanguageModelPolicy, env, n_steps=16, batch_size=16, n_epochs=1, gamma=1.0)
        >>> _ = agent.learn(16, callback=KLPenaltyCallback(coef=0.05))
    """

    def __init__(self, coef: float) -> None:
        is_number = isinstance(coef, Real) and not isinstance(coef, bool)
        if not is_number or not math.isfinite(coef) or coef < 0:
            raise InvalidArgumentError("coef", coef, "must be a finite number of at least 0")
        super().__init__()
        self.coef = float(coef)
        self._kl: list[NDArray[np.float32]] = []  # of each step, (num_envs,)
        self._dones: list[NDArray[np.bool_]] = []
        self._kl_so_far: NDArray[np.float32] = np.zeros(0, dtype=np.float32)  # of the episodes

    def _init_callback(self) -> None:
        check_has_rollouts(
            self.model,
            "for others, textgym.wrappers.ReferenceLogProb pays for text that a reference model "
            "finds likely",
        )
        check_rewards_as_paid(
            self.model, "the penalty is in units of the reward before it was normalised"
        )
        policy = self.model.policy
        if not isinstance(policy, LanguageModelPolicyMethods):
            raise InvalidArgumentError(
                "callback",
                type(policy).__name__,
                "the reference policy is the language model that the policy was made of: use "
                "LanguageModelPolicy, or for other policies textgym.wrappers.ReferenceLogProb with "
                "an entropy bonus",
            )
        self._reference = policy.reference()
        num_envs = self.training_env.num_envs
        if len(self._kl_so_far) != num_envs:
            self._kl_so_far = np.zeros(num_envs, dtype=np.float32)

    def _on_rollout_start(self) -> None:
        self._kl, self._dones = [], []

    def _on_step(self) -> bool:
        # The reference policy reads the batch that the policy has just read, so both round alike.
        logprobs = self.locals["log_probs"]  # (num_envs,)
        actions = torch.as_tensor(self.locals["actions"], device=logprobs.device)
        with torch.no_grad():
            distribution = self._reference.get_distribution(
                self.locals["obs_tensor"],
                self.locals.get("action_masks"),  # of MaskablePPO
            )
            kl = logprobs - distribution.log_prob(actions)
        self._kl.append(kl.float().cpu().numpy())
        self._dones.append(self.locals["dones"].copy())
        return True

    def _on_rollout_end(self) -> None:
        buffer: RolloutBuffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        kl = np.stack(self._kl)  # (num_steps, num_envs), like all arrays of the buffer
        add_to_rewards(buffer, -self.coef * kl)

        of_episodes: list[float] = []
        for step, dones in enumerate(self._dones):
            self._kl_so_far[buffer.episode_starts[step] == 1] = 0.0
            self._kl_so_far += kl[step]
            of_episodes += self._kl_so_far[dones].tolist()
        if of_episodes:
            self.logger.record("rollout/kl", float(np.mean(of_episodes)))
