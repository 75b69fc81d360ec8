"""Whole episodes from an environment, sampled with a key-value cache and continuous batching.

Layout of a rollout. Prompts are padded on the left and completions on the right, so that every
completion starts in the same column. Two episodes, "a b" → "c d" and "e" → "f g h", five columns::

    input_ids        a b | c d .        attention_mask   1 1 | 1 1 0
                     . e | f g h                         0 1 | 1 1 1

    completion_mask        1 1 0        rewards                0 R 0
                           1 1 1                               0 0 R

``num_tokens`` counts all columns (5), ``num_steps`` those of the completions (3): step t of an
episode is column t of the per-step arrays and column ``num_tokens - num_steps + t`` of the ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from textgym.errors import InvalidArgumentError

from .distribution import ActionRules, sample

if TYPE_CHECKING:
    from .policy import LanguageModelPolicy

__all__ = [
    "Rollout",
    "action_rules",
    "as_vector_env",
    "check_num_episodes",
    "collect_episodes",
    "left_padded",
]


@dataclass(frozen=True)
class Rollout:
    """Finished episodes of one policy; the module's page draws the layout."""

    input_ids: Tensor  # (num_episodes, num_tokens) int64, prompts then completions
    attention_mask: Tensor  # (num_episodes, num_tokens) bool, True at tokens
    completion_mask: Tensor  # (num_episodes, num_steps) bool, True at generated tokens
    rewards: Tensor  # (num_episodes, num_steps) float32, what step paid
    credit: Tensor  # (num_episodes, num_steps) float32, info["credit"], else the rewards
    logprobs: Tensor  # (num_episodes, num_steps) float32, of the chosen tokens, at sampling
    scores: Tensor  # (num_episodes,) float32, unshaped: what the completion is worth
    truncated: Tensor  # (num_episodes,) bool, cut off from outside, so the last state has a value
    prompts: list[str]  # (num_episodes,) text, empty if the environment does not tell
    completions: list[str]  # (num_episodes,) text, empty if the environment does not tell

    @property
    def env_returns(self) -> Tensor:
        """Undiscounted sum of what step paid in each episode, float32 (num_episodes,)."""
        return self.rewards.sum(dim=1)

    @property
    def episode_lengths(self) -> Tensor:
        """Number of generated tokens of each episode, int64 (num_episodes,)."""
        return self.completion_mask.sum(dim=1)


@dataclass
class _Episode:
    """One episode while it is being played."""

    prompt_ids: list[int]
    actions: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    unshaped_rewards: list[float] = field(default_factory=list)
    credit: NDArray[np.float32] | None = None
    score: float = 0.0
    truncated: bool = False
    prompt: str = ""
    completion: str = ""

    @property
    def text(self) -> list[int]:
        """Token ids of the prompt and of the completion so far."""
        return self.prompt_ids + self.actions

    def append(self, action: int, logprob: float, reward: float, unshaped_reward: float) -> None:
        """Note a step."""
        self.actions.append(action)
        self.logprobs.append(logprob)
        self.rewards.append(reward)
        self.unshaped_rewards.append(unshaped_reward)


def as_vector_env(env: gym.Env | VectorEnv) -> VectorEnv:
    """The environment in the form that whole-episode rollouts need.

    A single environment becomes a vector of one. A vector environment must let the rows that have
    finished wait for the others, which is what its autoreset mode ``DISABLED`` says.

    Raises:
        InvalidArgumentError: If the environment resets rows by itself, cannot let them wait, or
            does not observe tokens.
    """
    if isinstance(env, gym.Env):
        single_env = env
        env = SyncVectorEnv([lambda: single_env], autoreset_mode=AutoresetMode.DISABLED)
    if not isinstance(env, VectorEnv):
        raise InvalidArgumentError(
            "env", env, "pass a gymnasium.Env or a gymnasium.vector.VectorEnv."
        )
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise InvalidArgumentError(
            "env",
            env,
            f"its autoreset mode is {getattr(mode, 'name', mode)}, but a rollout of whole episodes "
            "needs finished rows to wait: make it with "
            "gym.make_vec(..., autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED).",
        )
    if env.num_envs > 1 and isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
        raise InvalidArgumentError(
            "env",
            env,
            f"{type(env.unwrapped).__name__} cannot let finished rows wait for the others: use "
            "the native vector environment (gym.make_vec with vectorization_mode="
            '"vector_entry_point"), or a single environment.',
        )
    space = env.single_observation_space
    keys = set(space.spaces) if isinstance(space, gym.spaces.Dict) else set()
    if not {"input_ids", "attention_mask"} <= keys:
        raise InvalidArgumentError(
            "env", env, "its observations must be a Dict with input_ids and attention_mask."
        )
    if not isinstance(env.single_action_space, gym.spaces.Discrete):
        raise InvalidArgumentError("env", env, "its action space must be Discrete(vocabulary).")
    return env


def action_rules(env: VectorEnv) -> ActionRules:
    """Read from an environment which actions are legal.

    Taken from the attributes ``tokenizer`` and ``min_new_tokens`` of the unwrapped environment; one
    without them has no EOS, and all its actions are always legal.

    Args:
        env: What :func:`as_vector_env` returned.
    """
    base: Any = env.unwrapped
    if isinstance(base, SyncVectorEnv):
        base = base.envs[0].unwrapped
    tokenizer = getattr(base, "tokenizer", None)
    pad_token_id = getattr(tokenizer, "pad_token_id", None)
    return ActionRules(
        num_actions=int(env.single_action_space.n),  # type: ignore[attr-defined]
        eos_token_id=getattr(tokenizer, "eos_token_id", None),
        min_new_tokens=getattr(base, "min_new_tokens", 0),
        pad_token_id=0 if pad_token_id is None else pad_token_id,
    )


def check_num_episodes(argument: str, num_episodes: int, num_envs: int) -> None:
    """Raise InvalidArgumentError unless the episodes fill whole rounds of the environment."""
    if num_episodes < 1 or num_episodes % num_envs:
        raise InvalidArgumentError(
            argument,
            num_episodes,
            f"must be a positive multiple of the environment's num_envs={num_envs}, because all "
            "rows play the same number of episodes.",
        )


def left_padded(
    observations: dict[str, NDArray[Any]], pad_token_id: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Move the padding of batched observations to the left, and cut what no row uses.

    Args:
        observations: ``input_ids`` and ``attention_mask``, both (num_envs, max_length).
        pad_token_id: Fills the padding.

    Returns:
        Ids int64 and mask bool, both (num_envs, length of the longest row).

    Raises:
        InvalidArgumentError: If a row is empty: a causal model needs a token to start from.
    """
    valid = np.asarray(observations["attention_mask"]).astype(bool)
    lengths = valid.sum(axis=1)  # (num_envs,)
    if not lengths.all():
        raise InvalidArgumentError(
            "attention_mask", lengths, "an observation has no token: prompts need at least one."
        )
    width = int(lengths.max())
    mask = np.arange(width) >= width - lengths[:, None]  # (num_envs, width)
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    # Both selections run row by row, and a row has as many tokens on either side.
    ids[mask] = np.asarray(observations["input_ids"])[valid]
    return ids, mask


def collect_episodes(
    policy: LanguageModelPolicy,
    env: gym.Env | VectorEnv,
    num_episodes: int,
    generator: torch.Generator,
    seed_generator: torch.Generator | None = None,
    group_size: int = 1,
) -> Rollout:
    """Play whole episodes and return them in one batch.

    A row that has ended an episode starts another one while the others go on. Reading new prompts
    is a forward pass of its own, so rows wait for each other until they have lost as many steps,
    all together, as there are rows: what is lost by waiting is about what the pass costs.

    Every reset has an explicit seed. The rollout thus depends on the generators and the policy
    alone, not on what the environment went through before, and a run that continues from a
    checkpoint sees the episodes that it would have seen without the stop.

    A group of episodes that start from the same prompt is a group of equal seeds: all that an
    environment draws at reset, the prompt and the budget of tokens, it draws from the seed. So
    groups need no support from the environment, and may be larger than its number of rows; the
    tokens come from another generator, so the completions of a group differ. Group g is made of the
    episodes ``g * group_size`` to ``(g + 1) * group_size - 1``.

    Args:
        policy: Chooses the tokens; its rules and its temperature shape the distribution.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED``.
        num_episodes: A multiple of the number of rows, and of ``group_size``.
        generator: Draws the tokens; a generator of the CPU, wherever the policy lives.
        seed_generator: Draws the seeds of the resets; by default the same generator. With a
            stream of their own, two agents that sample differently still see the same prompts.
        group_size: Number of episodes that start from the same prompt.

    Raises:
        InvalidArgumentError: If the environment or the number of episodes does not fit.
    """
    env = as_vector_env(env)
    check_num_episodes("num_episodes", num_episodes, env.num_envs)
    if group_size < 1 or num_episodes % group_size:
        raise InvalidArgumentError(
            "group_size", group_size, f"must divide the number of episodes, {num_episodes}."
        )
    seeds = torch.randint(
        2**31 - 1, (num_episodes // group_size,), generator=seed_generator or generator
    ).repeat_interleave(group_size)  # (num_episodes,)
    episodes = _play(policy, env, generator, seeds.tolist())
    _check_groups(env, episodes, group_size)
    return _to_rollout(episodes, policy.rules.pad_token_id)


def _play(
    policy: LanguageModelPolicy, env: VectorEnv, generator: torch.Generator, seeds: list[int]
) -> list[_Episode]:
    """One episode per seed, in the order of the seeds."""
    rows = range(env.num_envs)
    observations, _ = env.reset(seed=seeds[: env.num_envs])  # type: ignore[arg-type]
    episodes = [_Episode(_text_of_row(observations, row)) for row in rows]
    playing: dict[int, _Episode] = dict(zip(rows, episodes, strict=True))
    free: list[int] = []  # rows that play no episode
    num_lost = 0  # steps in which they could have
    with policy.reading() as reader:
        while playing:
            texts = [playing[row].text if row in playing else None for row in rows]
            logits = reader.read(texts).logits.cpu()
            num_generated = [len(playing[row].actions) if row in playing else 0 for row in rows]
            logprobs = policy.next_token_logprobs(logits, torch.tensor(num_generated))
            tokens = sample(logprobs, generator)  # (num_envs,)
            chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
            observations, rewards, terminated, truncated, infos = env.step(tokens.numpy())
            unshaped = _unshaped_rewards(infos, rewards).tolist()
            for row, episode in playing.items():
                episode.append(int(tokens[row]), chosen[row], float(rewards[row]), unshaped[row])
            _check_appended(env, observations, playing, terminated | truncated)
            ended = [row for row in playing if terminated[row] or truncated[row]]
            for row in ended:
                cut_off = bool(truncated[row] and not terminated[row])
                _finish(playing.pop(row), _info_of_row(infos, row), cut_off)
            free += ended
            num_lost += len(free)
            if not playing or num_lost >= env.num_envs:
                started = _restart(env, dict(zip(free, seeds[len(episodes) :], strict=False)))
                episodes += started.values()
                playing |= started
                free, num_lost = [row for row in free if row not in playing], 0
    return episodes


def _restart(env: VectorEnv, seeds: dict[int, int]) -> dict[int, _Episode]:
    """Reset the rows that have a seed; their new episodes."""
    if not seeds:
        return {}
    mask = np.isin(np.arange(env.num_envs), list(seeds))
    seed = [seeds.get(row) for row in range(env.num_envs)]
    observations, _ = env.reset(seed=seed, options={"reset_mask": mask})  # type: ignore[arg-type]
    return {row: _Episode(_text_of_row(observations, row)) for row in seeds}


def _text_of_row(observations: dict[str, NDArray[Any]], row: int) -> list[int]:
    """Token ids without padding.

    Raises:
        InvalidArgumentError: If there is none: a causal model needs a token to start from.
    """
    ids = observations["input_ids"][row][observations["attention_mask"][row].astype(bool)]
    if not len(ids):
        raise InvalidArgumentError(
            "attention_mask", 0, "an observation has no token: prompts need at least one."
        )
    return ids.tolist()


def _unshaped_rewards(infos: dict[str, Any], rewards: NDArray[Any]) -> NDArray[Any]:
    """What step would have paid without shaping, (num_envs,)."""
    if "unshaped_reward" not in infos:
        return rewards
    return np.where(infos["_unshaped_reward"], infos["unshaped_reward"], rewards)


def _check_groups(env: VectorEnv, episodes: list[_Episode], group_size: int) -> None:
    """Make sure that equal seeds gave equal prompts."""
    for row, episode in enumerate(episodes):
        first = episodes[row - row % group_size]
        if episode.prompt_ids != first.prompt_ids:
            raise InvalidArgumentError(
                "env",
                env,
                "rows that are reset with equal seeds must start from equal prompts: let reset "
                "draw them from self.np_random alone.",
            )


def _info_of_row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """The entries of a vector environment's infos that its masks give to this row."""
    return {
        key: values[row]
        for key, values in infos.items()
        if not key.startswith("_") and f"_{key}" in infos and infos[f"_{key}"][row]
    }


def _finish(episode: _Episode, info: dict[str, Any], truncated: bool) -> None:
    """Keep what the environment tells at the end of an episode."""
    episode.truncated = truncated
    episode.score = float(info.get("score", sum(episode.unshaped_rewards)))
    episode.prompt = str(info.get("prompt", ""))
    episode.completion = str(info.get("completion", ""))
    if "credit" in info:
        episode.credit = np.asarray(info["credit"], dtype=np.float32)
        if episode.credit.shape != (len(episode.actions),):
            raise InvalidArgumentError(
                'info["credit"]',
                episode.credit,
                f"the episode had {len(episode.actions)} steps: hand over one number per step.",
            )


def _check_appended(
    env: VectorEnv,
    observations: dict[str, NDArray[Any]],
    playing: dict[int, _Episode],
    ended: NDArray[np.bool_],
) -> None:
    """Make sure that the environment did what the reader assumes: append the action."""
    rows = np.array([row for row in playing if not ended[row]], dtype=np.int64)
    ids = np.asarray(observations["input_ids"])[rows]
    valid = np.asarray(observations["attention_mask"])[rows].astype(bool)
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    seen = ids[np.arange(len(rows)), last], valid.sum(axis=1)
    episodes = [playing[row] for row in rows.tolist()]
    expected = [e.actions[-1] for e in episodes], [len(e.text) for e in episodes]
    if not np.array_equal(seen, expected):
        raise InvalidArgumentError(
            "env",
            env,
            "a step must append the chosen token to the observation, and nothing else: "
            "remove wrappers that change actions or observations.",
        )


def _to_rollout(episodes: list[_Episode], pad_token_id: int) -> Rollout:
    """Lay out episodes as the module's page draws them."""
    num_prompt = max(len(episode.prompt_ids) for episode in episodes)
    num_steps = max(len(episode.actions) for episode in episodes)
    shape = (len(episodes), num_prompt + num_steps)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    rewards, credit, logprobs = torch.zeros(3, len(episodes), num_steps)
    for row, episode in enumerate(episodes):
        length = len(episode.actions)
        start, end = num_prompt - len(episode.prompt_ids), num_prompt + length
        input_ids[row, start:num_prompt] = torch.tensor(episode.prompt_ids)
        input_ids[row, num_prompt:end] = torch.tensor(episode.actions)
        attention_mask[row, start:end] = True
        rewards[row, :length] = torch.tensor(episode.rewards)
        credit[row, :length] = (
            rewards[row, :length] if episode.credit is None else torch.from_numpy(episode.credit)
        )
        logprobs[row, :length] = torch.tensor(episode.logprobs)
    return Rollout(
        input_ids=input_ids,
        attention_mask=attention_mask,
        completion_mask=attention_mask[:, num_prompt:].clone(),
        rewards=rewards,
        credit=credit,
        logprobs=logprobs,
        scores=torch.tensor([episode.score for episode in episodes]),
        truncated=torch.tensor([episode.truncated for episode in episodes]),
        prompts=[episode.prompt for episode in episodes],
        completions=[episode.completion for episode in episodes],
    )
