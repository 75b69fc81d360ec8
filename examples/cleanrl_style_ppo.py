r"""PPO for small control problems in one file, the style that CleanRL made popular.

The agent knows nothing about text. It needs a vector as the observation and a few actions, and
``ABC-RLHF-Features-v0`` has both: features of a language model, and its 4 most likely tokens. The
score comes with the last of 16 tokens. ``ABC-RLHF-Features-Dense-v0`` pays it token by token.

python examples/cleanrl_style_ppo.py --env-id textgym:ABC-RLHF-Features-v0 \
    --total-timesteps 500000 --vectorization-mode vector_entry_point

This uses the batched environment. Without the last argument, every row has an environment of its
own, as in CleanRL, which takes several times as long. README.md in this folder explains how to run
CleanRL's own script.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical


@dataclass
class Arguments:
    """PPO on any environment with vectors as observations and Discrete actions."""

    env_id: str = "textgym:ABC-RLHF-Features-v0"
    """id of the environment; the module before the colon is imported first"""
    vectorization_mode: Literal["sync", "async", "vector_entry_point"] = "sync"
    """an environment for each row (sync, async), or a batched one if the id has it"""
    total_timesteps: int = 500_000
    """environment steps over all rows, rounded down to whole rollouts"""
    seed: int = 0
    """seed of the environments, the networks and the sampling of actions"""
    num_envs: int = 64
    """number of rows"""
    num_steps: int = 68
    """steps of each row in a rollout: four texts of 16 tokens, and a reset after each"""
    learning_rate: float = 1e-3
    """step size of Adam"""
    gamma: float = 1.0
    """discount factor; 1, because the score comes last and texts are short"""
    gae_lambda: float = 1.0
    """decay of the advantage estimate: 1 trusts the score alone, less trusts the critic, too"""
    update_epochs: int = 8
    """passes over each rollout"""
    num_minibatches: int = 8
    """number of parts that a rollout is split into"""
    clip_coef: float = 0.2
    """how far an update may move the probability ratio from 1"""
    ent_coef: float = 0.0
    """coefficient of the entropy bonus"""
    vf_coef: float = 0.5
    """coefficient of the value loss"""
    max_grad_norm: float = 0.5
    """norm that gradients are clipped to"""


class Agent(nn.Module):
    """Two networks: the actor chooses, the critic estimates the return."""

    def __init__(self, num_features: int, num_actions: int) -> None:
        super().__init__()
        # Gain of the last layers: an almost uniform policy at first, values of the usual size.
        self.actor = _network(num_features, num_actions, std=0.01)
        self.critic = _network(num_features, 1, std=1.0)

    def policy(self, obs: Tensor) -> Categorical:
        """Distribution of the action after each observation (..., num_features)."""
        return Categorical(logits=self.actor(obs))

    def value(self, obs: Tensor) -> Tensor:
        """Expected return after each observation, shape (...)."""
        return self.critic(obs).squeeze(-1)


def _network(num_inputs: int, num_outputs: int, std: float, hidden: int = 64) -> nn.Sequential:
    sizes = [num_inputs, hidden, hidden, num_outputs]
    layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, std), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Rollout(NamedTuple):
    """Steps of all rows under one policy; the leading axes are (num_steps, num_envs)."""

    obs: Tensor  # (num_steps, num_envs, num_features)
    actions: Tensor
    logprobs: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor  # bool: the episode finished here, so nothing follows
    ended: Tensor  # bool: it finished here, or a limit from outside cut it off
    is_reset: Tensor  # bool: not a step of an episode; the environment ignored the action


class Sampler:
    """Steps the environments, and remembers their state between rollouts."""

    def __init__(self, envs: gym.vector.VectorEnv, seed: int) -> None:
        if envs.metadata["autoreset_mode"] is not gym.vector.AutoresetMode.NEXT_STEP:
            raise ValueError("the environments must reset themselves in the next step (NEXT_STEP)")
        self.envs = envs
        self.obs = torch.as_tensor(envs.reset(seed=seed)[0], dtype=torch.float32)
        self.will_reset = torch.zeros(envs.num_envs, dtype=torch.bool)
        self._returns = np.zeros(envs.num_envs)

    @torch.no_grad()
    def sample(self, agent: Agent, num_steps: int) -> tuple[Rollout, list[float]]:
        """Take ``num_steps`` steps; also list the returns of the episodes that ended."""
        steps, returns = [], []
        for _ in range(num_steps):
            policy = agent.policy(self.obs)
            action = policy.sample()
            next_obs, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            ended = terminated | truncated
            steps.append(
                Rollout(
                    self.obs,
                    action,
                    policy.log_prob(action),
                    agent.value(self.obs),
                    torch.as_tensor(reward, dtype=torch.float32),
                    torch.as_tensor(terminated),
                    torch.as_tensor(ended),
                    self.will_reset,
                )
            )
            self._returns += reward
            returns += self._returns[ended].tolist()
            self._returns[ended] = 0.0
            self.obs = torch.as_tensor(next_obs, dtype=torch.float32)
            self.will_reset = torch.as_tensor(ended)
        return Rollout(*map(torch.stack, zip(*steps, strict=True))), returns


def advantages_of(rollout: Rollout, last_value: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Estimate advantages (GAE, arXiv 1506.02438, equation 16), shape (num_steps, num_envs).

    An environment that resets in the step after the end still shows the last observation of the
    episode first. So each observation is the true successor of the one before it, except after a
    reset step. An episode that was cut off continues with the value of its own last observation,
    and a finished one with nothing. The advantage of a reset step has no meaning.
    """
    next_values = torch.cat([rollout.values[1:], last_value[None]])
    deltas = rollout.rewards + gamma * next_values * ~rollout.terminated - rollout.values
    advantages = torch.zeros_like(deltas)
    following = torch.zeros_like(last_value)
    for step in reversed(range(len(deltas))):
        following = deltas[step] + gamma * gae_lambda * following * ~rollout.ended[step]
        advantages[step] = following
    return advantages


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    last_value: Tensor,
    args: Arguments,
) -> None:
    """Learn from all steps of a rollout except the resets (PPO, arXiv 1707.06347)."""
    advantages = advantages_of(rollout, last_value, args.gamma, args.gae_lambda)
    learned = ~rollout.is_reset
    obs, actions, old_logprobs = (
        part[learned] for part in (rollout.obs, rollout.actions, rollout.logprobs)
    )
    targets, advantages = (advantages + rollout.values)[learned], advantages[learned]
    for _ in range(args.update_epochs):
        for rows in torch.randperm(len(obs)).tensor_split(args.num_minibatches):
            policy = agent.policy(obs[rows])
            ratio = (policy.log_prob(actions[rows]) - old_logprobs[rows]).exp()
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            gain = advantages[rows]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            policy_loss = -torch.min(ratio * gain, clipped * gain).mean()
            value_loss = 0.5 * (agent.value(obs[rows]) - targets[rows]).square().mean()
            bonus = args.ent_coef * policy.entropy().mean()
            optimizer.zero_grad()
            (policy_loss + args.vf_coef * value_loss - bonus).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()


def main(args: Arguments) -> None:
    torch.set_num_threads(1)  # such small networks gain nothing from more
    torch.manual_seed(args.seed)
    envs = gym.make_vec(args.env_id, args.num_envs, vectorization_mode=args.vectorization_mode)
    observations, actions = envs.single_observation_space, envs.single_action_space
    if not (isinstance(observations, gym.spaces.Box) and isinstance(actions, gym.spaces.Discrete)):
        raise ValueError("the environment must have Box observations and Discrete actions")
    agent = Agent(int(np.prod(observations.shape)), int(actions.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    sampler = Sampler(envs, args.seed)
    start, means = time.perf_counter(), []
    for iteration in range(args.total_timesteps // (args.num_envs * args.num_steps)):
        rollout, returns = sampler.sample(agent, args.num_steps)
        with torch.no_grad():
            last_value = agent.value(sampler.obs)
        update(agent, optimizer, rollout, last_value, args)
        if returns:  # The return of an episode is its score, because nothing else is paid.
            means.append(np.mean(returns))
            seconds = time.perf_counter() - start
            print(f"iteration {iteration:3d}  {seconds:5.1f} s  mean score {means[-1]:+.2f}")
    envs.close()
    if means:
        print(f"mean score {means[0]:+.2f} -> {means[-1]:+.2f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__.splitlines()[0]))
