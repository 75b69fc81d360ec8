"""Sample whole episodes with a key-value cache, starting new ones as rows become free.

Layout of a rollout. Prompts are padded on the left and completions on the right, so every
completion starts in the same column. Two episodes, "a b" → "c d" and "e" → "f g h", five columns::

    input_ids        a b | c d .        attention_mask   1 1 | 1 1 0
                     . e | f g h                         0 1 | 1 1 1

    completion_mask        1 1 0        rewards                0 R 0
                           1 1 1                               0 0 R

``num_tokens`` counts all columns (5), ``num_steps`` only those of the completions (3). Step t of an
episode is column t of the per-step arrays and column ``num_tokens - num_steps + t`` of the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from textgym.checks import check_whole_number
from textgym.errors import InvalidArgumentError, NumericalError

from .distribution import sample
from .environment import as_vector_env, check_num_episodes
from .processes import ALONE, Processes
from .sampling import SampledCompletion, Sampler, SamplingRequest, check_completions

if TYPE_CHECKING:
    from .policy import LanguageModelPolicy

__all__ = ["Rollout", "collect_episodes"]


@dataclass(frozen=True)
class Rollout:
    """Finished episodes of one policy; see the module docstring for the layout."""

    input_ids: Tensor  # (num_episodes, num_tokens) int64, prompts then completions
    attention_mask: Tensor  # (num_episodes, num_tokens) bool, True at tokens
    completion_mask: Tensor  # (num_episodes, num_steps) bool, True at generated tokens
    rewards: Tensor  # (num_episodes, num_steps) float32, what step paid
    credit: Tensor  # (num_episodes, num_steps) float32, info["credit"], or else the rewards
    logprobs: Tensor  # (num_episodes, num_steps) float32, of the chosen tokens, when sampled
    scores: Tensor  # (num_episodes,) float32, info["score"], or else the unshaped return
    truncated: Tensor  # (num_episodes,) bool, cut off from outside: the last state has a value
    token_budgets: Tensor  # (num_episodes,) int64, info["token_budget"], 0 if reset does not tell
    prompts: list[str]  # (num_episodes,) text, empty if the environment does not give it
    completions: list[str]  # (num_episodes,) text, empty if the environment does not give it

    @property
    def texts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and completion mask, as ``policy.evaluate`` takes them."""
        return self.input_ids, self.attention_mask, self.completion_mask

    @property
    def env_returns(self) -> Tensor:
        """Undiscounted sum of what step paid in each episode, float32 (num_episodes,)."""
        return self.rewards.sum(dim=1)

    @property
    def episode_lengths(self) -> Tensor:
        """Number of generated tokens of each episode, int64 (num_episodes,)."""
        return self.completion_mask.sum(dim=1)

    def to(self, device: str) -> Rollout:
        """The same rollout with its tensors on another device."""
        tensors: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)

    def check_finite(self) -> None:
        """Make sure that all that the environment paid is finite.

        Raises:
            NumericalError: If not; it names the quantity, the prompt and the completion.
        """
        outside = ~self.completion_mask
        for name, values in {
            "score": self.scores,
            "reward": self.rewards.masked_fill(outside, 0.0),
            "credit": self.credit.masked_fill(outside, 0.0),
        }.items():
            wrong = ~values.isfinite()
            if wrong.any():
                episode = int(wrong.view(len(values), -1).any(dim=1).nonzero()[0])
                value = values[episode][wrong[episode]].flatten()[0].item()
                prompt, completion = self._shown(episode)
                raise NumericalError(
                    name,
                    value,
                    f"of the completion {completion!r} of the prompt {prompt!r}",
                    "find out why the environment or its reward model gives it, and score it "
                    "otherwise",
                )

    def _shown(self, episode: int) -> tuple[str, str]:
        """Prompt and completion, as text if the environment gives it, or else as token ids."""
        if self.prompts[episode] or self.completions[episode]:
            return self.prompts[episode], self.completions[episode]
        num_steps = self.completion_mask.shape[1]
        ids, mask = self.input_ids[episode], self.attention_mask[episode]
        prompt, completion = ids[:-num_steps], ids[-num_steps:]
        return (
            str(prompt[mask[:-num_steps]].tolist()),
            str(completion[mask[-num_steps:]].tolist()),
        )

    def scalars(self, processes: Processes = ALONE) -> dict[str, float]:
        """Statistics for the log, over the episodes of all processes."""
        scores = processes.concatenate(self.scores)
        return {
            "rollout/score_mean": scores.mean().item(),
            "rollout/score_std": scores.std(correction=0).item(),
            **processes.means(
                {
                    "rollout/episode_length": self.episode_lengths.float().mean().item(),
                    "rollout/return_mean": self.env_returns.mean().item(),
                }
            ),
        }


def collect_episodes(
    policy: LanguageModelPolicy,
    env: gym.Env | VectorEnv,
    num_episodes: int,
    generator: torch.Generator,
    seed_generator: torch.Generator | None = None,
    group_size: int = 1,
    processes: Processes = ALONE,
    sampler: Sampler | None = None,
) -> Rollout:
    """Play whole episodes and return them in one batch.

    When an episode ends, its row can start another one while the other rows go on. Reading new
    prompts costs a forward pass, so free rows wait and restart together: as soon as the steps lost
    by waiting, summed over rows, reach the number of rows. By then waiting has cost about as much
    as the pass.

    Every reset gets an explicit seed. So a rollout depends only on the generators and the policy,
    not on the environment's past, and a run that continues from a checkpoint sees the same episodes
    as an unbroken run.

    A group of episodes with the same prompt is a group of equal seeds: everything that reset draws,
    such as the prompt and the token budget, depends on the seed. The environment needs no support
    for groups, and a group may be larger than its number of rows. The completions of a group
    differ, because tokens come from another generator. Group g consists of the episodes
    ``g * group_size`` to ``(g + 1) * group_size - 1``.

    With a sampler, every prompt is read first, from a reset of its own. The sampler gets the
    policy's weights and completes all prompts in one call. Then the episodes are played as ever,
    with its tokens.

    Args:
        policy: Chooses the tokens; its rules and its temperature shape the distribution.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED``.
        num_episodes: A multiple of the number of rows, and of ``group_size``.
        generator: Draws the tokens, or the seeds for the sampler; a CPU generator, whatever the
            policy's device.
        seed_generator: Draws the seeds of the resets; by default ``generator``. With separate
            generators, two agents that sample differently still see the same prompts.
        group_size: Number of episodes that start from the same prompt.
        processes: Each plays its part of the episodes, whole groups, and returns that part. The
            prompts are those that a single process would get; the tokens come from a generator of
            each process's own.
        sampler: Chooses the tokens instead of the policy, and gives their log-probabilities.

    Raises:
        InvalidArgumentError: If the environment or the number of episodes does not fit, or if the
            sampler returns what the policy could not have sampled.
        NumericalError: If a score, a reward or a probability is NaN or infinite.
    """
    env = as_vector_env(env)
    check_num_episodes("num_episodes", num_episodes, env.num_envs, processes.size)
    if num_episodes % check_whole_number("group_size", group_size, 1):
        raise InvalidArgumentError(
            "group_size", group_size, f"must divide the number of episodes, {num_episodes}."
        )
    seeds = torch.randint(
        2**31 - 1, (num_episodes // group_size,), generator=seed_generator or generator
    ).repeat_interleave(group_size)  # (num_episodes,)
    own_seeds = processes.part(seeds.tolist())
    own_generator = processes.own_generator(generator)
    if sampler is None:
        storage = _play(_tokens_of_policy(policy, own_generator), env, own_seeds)
    else:
        script = _Script.sampled(sampler, policy, env, own_seeds, own_generator)
        storage = _play(nullcontext(script.choose), env, own_seeds)
        script.check_end(storage)
    storage.check_groups(env, group_size)
    rollout = storage.rollout(policy.rules.pad_token_id)
    rollout.check_finite()
    return rollout


_Chooser = Callable[["_Storage", NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Chooses a token for every row. It gets the episodes so far, and the episode that each row plays,
-1 for none, (num_envs,). It returns tokens and their log-probabilities, both (num_envs,); those of
rows without an episode are ignored."""


@contextmanager
def _tokens_of_policy(
    policy: LanguageModelPolicy, generator: torch.Generator
) -> Iterator[_Chooser]:
    """Sample each token from the policy, with a key-value cache."""
    with policy.reading() as reader:

        def choose(
            storage: _Storage, episode_of: NDArray[np.int64]
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            logits = reader.read(storage.texts(episode_of)).logits.cpu()
            num_generated = np.where(episode_of >= 0, storage.num_steps[episode_of], 0)
            logprobs = policy.next_token_logprobs(logits, torch.from_numpy(num_generated))
            try:
                tokens = sample(logprobs, generator)  # (num_envs,)
            except NumericalError as error:
                row = int(logprobs.isnan().any(dim=1).nonzero()[0])
                where = f"after the tokens {storage.texts(episode_of)[row]}"
                raise NumericalError(error.quantity, error.value, where, error.remedy) from None
            return tokens.numpy(), logprobs.gather(1, tokens[:, None])[:, 0].numpy()

        yield choose


@dataclass(frozen=True)
class _Script:
    """Completions that a sampler has written, one per episode, to be played token by token."""

    env: VectorEnv
    requests: list[SamplingRequest]
    completions: Sequence[SampledCompletion]

    @classmethod
    def sampled(
        cls,
        sampler: Sampler,
        policy: LanguageModelPolicy,
        env: VectorEnv,
        seeds: Sequence[int],
        generator: torch.Generator,
    ) -> _Script:
        """Ask the sampler for one completion per seed of a reset."""
        starts = _read_starts(env, seeds)
        token_seeds = torch.randint(2**31 - 1, (len(seeds),), generator=generator).tolist()
        requests = [
            SamplingRequest(*starts[seed], token_seed)
            for seed, token_seed in zip(seeds, token_seeds, strict=True)
        ]
        sampler.update(policy.model)
        completions = sampler.sample(requests, policy.rules, policy.temperature)
        check_completions(completions, requests, policy.rules)
        return cls(env, requests, completions)

    def choose(
        self, storage: _Storage, episode_of: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The next token of each row's completion; a :data:`_Chooser`."""
        tokens = np.zeros(len(episode_of), np.int64)
        logprobs = np.zeros(len(episode_of), np.float32)
        for row in np.flatnonzero(episode_of >= 0):
            episode = episode_of[row]
            step, completion = storage.num_steps[episode], self.completions[episode]
            if step == 0:
                self._check_start(storage, episode)
            if step == len(completion.token_ids):
                raise InvalidArgumentError(
                    "env",
                    self.env,
                    f"episode {episode} goes on after {step} tokens, where EOS or its token_budget "
                    "should have ended it: with a sampler, an environment must keep to both.",
                )
            tokens[row], logprobs[row] = completion.token_ids[step], completion.logprobs[step]
        return tokens, logprobs

    def check_end(self, storage: _Storage) -> None:
        """Make sure that all tokens were played, save in episodes that were cut off from outside.

        There the rest is not used: the tokens before it were sampled all the same.
        """
        for episode, completion in enumerate(self.completions):
            num_steps, num_tokens = storage.num_steps[episode], len(completion.token_ids)
            if num_steps < num_tokens and not storage.truncated[episode]:
                raise InvalidArgumentError(
                    "env",
                    self.env,
                    f"it ended episode {episode} after {num_steps} of {num_tokens} tokens, without "
                    "EOS and before its token_budget: with a sampler, nothing else may end one.",
                )

    def _check_start(self, storage: _Storage, episode: int) -> None:
        prompt = storage.input_ids[episode, : storage.prompt_lengths[episode]].tolist()
        budget = storage.token_budgets[episode]
        request = self.requests[episode]
        if (prompt, budget) != (request.prompt_ids, request.token_budget):
            raise InvalidArgumentError(
                "env",
                self.env,
                "resets with equal seeds must give equal prompts and token budgets: let reset draw "
                "them from self.np_random alone.",
            )


def _read_starts(env: VectorEnv, seeds: Sequence[int]) -> dict[int, tuple[list[int], int]]:
    """Prompt and token budget of each seed, without playing."""
    starts: dict[int, tuple[list[int], int]] = {}
    distinct = list(dict.fromkeys(seeds))
    for first in range(0, len(distinct), env.num_envs):
        of_rows = distinct[first : first + env.num_envs]
        filled = of_rows + of_rows[:1] * (env.num_envs - len(of_rows))  # A seed for every row.
        observations, infos = env.reset(seed=filled)  # type: ignore[arg-type]
        for row, seed in enumerate(of_rows):
            budget = _info_of_row(infos, row).get("token_budget")
            if budget is None:
                raise InvalidArgumentError(
                    "env",
                    env,
                    "a sampler has to know when an episode ends: let reset return the number of "
                    'tokens as info["token_budget"].',
                )
            starts[seed] = _text_of_row(observations, row).tolist(), int(budget)
    return starts


def _play(
    choosing: AbstractContextManager[_Chooser], env: VectorEnv, seeds: Sequence[int]
) -> _Storage:
    """Play one episode per seed; episode i starts from ``seeds[i]``.

    Args:
        choosing: Gives what chooses the tokens; entered for the time of the steps.
        env: A vector environment whose finished rows wait.
        seeds: Seeds of the resets.
    """
    num_envs = env.num_envs
    observations, infos = env.reset(seed=seeds[:num_envs])  # type: ignore[arg-type]
    storage = _Storage(len(seeds), max_length=observations["input_ids"].shape[1])
    episode_of = np.arange(num_envs)  # (num_envs,) the episode that each row plays; -1 for none
    for row in range(num_envs):
        storage.start(row, _text_of_row(observations, row), _info_of_row(infos, row))
    num_started = num_envs
    free: list[int] = []  # rows without an episode, in the order in which theirs ended
    num_lost = 0  # steps that free rows have missed since the last restart
    with choosing as choose:
        while (rows := np.flatnonzero(episode_of >= 0)).size:
            # Choose a token for every row. Free rows get one too, which is ignored.
            actions, chosen = choose(storage, episode_of)  # (num_envs,)

            # Step all rows, and store what happened in those that play.
            observations, rewards, terminated, truncated, infos = env.step(actions)
            unshaped = _unshaped_rewards(infos, rewards)
            storage.append(
                episode_of[rows], actions[rows], chosen[rows], rewards[rows], unshaped[rows]
            )
            ended = terminated | truncated
            going_on = rows[~ended[rows]]
            _check_appended(env, observations, going_on, storage, episode_of[going_on])
            # In the order of their episodes, which decides which row gets the next seed.
            for row in sorted(rows[ended[rows]].tolist(), key=episode_of.__getitem__):
                cut_off = bool(truncated[row] and not terminated[row])
                storage.finish(episode_of[row], _info_of_row(infos, row), cut_off)
                episode_of[row] = -1
                free.append(row)

            # Restart the free rows when they have missed enough steps, or when no row plays.
            num_lost += len(free)
            num_new = min(len(free), len(seeds) - num_started)
            if num_new and (num_lost >= num_envs or len(free) == num_envs):
                restarted, free, num_lost = free[:num_new], free[num_new:], 0
                new = range(num_started, num_started + num_new)
                num_started += num_new
                observations, infos = _reset(
                    env, {row: seeds[e] for row, e in zip(restarted, new, strict=True)}
                )
                for row, episode in zip(restarted, new, strict=True):
                    text, info = _text_of_row(observations, row), _info_of_row(infos, row)
                    storage.start(episode, text, info)
                    episode_of[row] = episode
    return storage


class _Storage:
    """Episodes while they are played. Entry e of each array belongs to episode e."""

    def __init__(self, num_episodes: int, max_length: int) -> None:
        # Every observation fits into max_length columns; the last action is never observed.
        self.input_ids = np.zeros((num_episodes, max_length + 1), np.int64)  # prompt, completion
        self.prompt_lengths = np.zeros(num_episodes, np.int64)
        self.num_steps = np.zeros(num_episodes, np.int64)  # so far
        self.rewards = np.zeros((num_episodes, max_length), np.float32)
        self.credit = np.zeros((num_episodes, max_length), np.float32)
        self.logprobs = np.zeros((num_episodes, max_length), np.float32)
        self.scores = np.zeros(num_episodes, np.float64)
        self.truncated = np.zeros(num_episodes, np.bool_)
        self.token_budgets = np.zeros(num_episodes, np.int64)
        self.prompts = [""] * num_episodes
        self.completions = [""] * num_episodes

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt and its completion so far, (num_episodes,)."""
        return self.prompt_lengths + self.num_steps

    def start(self, episode: int, prompt_ids: NDArray[np.int64], info: dict[str, Any]) -> None:
        """Begin an episode with its prompt, and with what reset says about it."""
        self.token_budgets[episode] = info.get("token_budget", 0)
        self.prompt_lengths[episode] = len(prompt_ids)
        self.input_ids[episode, : len(prompt_ids)] = prompt_ids

    def texts(self, episodes: NDArray[np.int64]) -> list[list[int] | None]:
        """Token ids of prompt and completion so far; None for episode -1."""
        lengths = self.lengths
        return [self.input_ids[e, : lengths[e]].tolist() if e >= 0 else None for e in episodes]

    def append(
        self,
        episodes: NDArray[np.int64],
        actions: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        rewards: NDArray[Any],
        unshaped_rewards: NDArray[Any],
    ) -> None:
        """Store one step of some episodes; all arguments have shape (len(episodes),)."""
        step = self.num_steps[episodes]
        self.input_ids[episodes, self.lengths[episodes]] = actions
        self.logprobs[episodes, step] = logprobs
        self.rewards[episodes, step] = rewards
        self.scores[episodes] += unshaped_rewards
        self.num_steps[episodes] += 1

    def finish(self, episode: int, info: dict[str, Any], truncated: bool) -> None:
        """Store what the environment says at the end of an episode."""
        num_steps = self.num_steps[episode]
        self.truncated[episode] = truncated
        self.scores[episode] = info.get("score", self.scores[episode])
        self.prompts[episode] = str(info.get("prompt", ""))
        self.completions[episode] = str(info.get("completion", ""))
        self.credit[episode] = self.rewards[episode]
        if "credit" in info:
            credit = np.asarray(info["credit"], dtype=np.float32)
            if credit.ndim != 1 or len(credit) < num_steps or credit[num_steps:].any():
                raise InvalidArgumentError(
                    'info["credit"]',
                    credit,
                    f"the episode had {num_steps} steps: pass one number per step, and nothing but "
                    "zeros after the last step.",
                )
            self.credit[episode, :num_steps] = credit[:num_steps]

    def check_groups(self, env: VectorEnv, group_size: int) -> None:
        """Make sure that equal seeds gave equal prompts."""
        prompts = [
            ids[:length].tolist()
            for ids, length in zip(self.input_ids, self.prompt_lengths, strict=True)
        ]
        for episode, prompt in enumerate(prompts):
            if prompt != prompts[episode - episode % group_size]:
                raise InvalidArgumentError(
                    "env",
                    env,
                    "rows that are reset with equal seeds must start from equal prompts: let reset "
                    "draw them from self.np_random alone.",
                )

    def rollout(self, pad_token_id: int) -> Rollout:
        """Move each row so that completions start in the same column, and cut unused columns."""
        num_prompt, num_steps = int(self.prompt_lengths.max()), int(self.num_steps.max())
        # columns[e, c] is the column of self.input_ids that belongs into column c of the rollout.
        columns = np.arange(num_prompt + num_steps) - (num_prompt - self.prompt_lengths)[:, None]
        attention_mask = (columns >= 0) & (columns < self.lengths[:, None])
        last = self.input_ids.shape[1] - 1
        input_ids = np.take_along_axis(self.input_ids, columns.clip(0, last), axis=1)
        return Rollout(
            input_ids=torch.from_numpy(np.where(attention_mask, input_ids, pad_token_id)),
            attention_mask=torch.from_numpy(attention_mask),
            completion_mask=torch.from_numpy(attention_mask[:, num_prompt:].copy()),
            rewards=torch.from_numpy(self.rewards[:, :num_steps].copy()),
            credit=torch.from_numpy(self.credit[:, :num_steps].copy()),
            logprobs=torch.from_numpy(self.logprobs[:, :num_steps].copy()),
            scores=torch.from_numpy(self.scores).float(),
            truncated=torch.from_numpy(self.truncated),
            token_budgets=torch.from_numpy(self.token_budgets),
            prompts=self.prompts,
            completions=self.completions,
        )


def _reset(env: VectorEnv, seeds: dict[int, int]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Reset the rows that have a seed; returns the observations of all rows, and the infos."""
    mask = np.isin(np.arange(env.num_envs), list(seeds))
    seed = [seeds.get(row) for row in range(env.num_envs)]
    return env.reset(seed=seed, options={"reset_mask": mask})  # type: ignore[arg-type]


def _text_of_row(observations: dict[str, NDArray[Any]], row: int) -> NDArray[np.int64]:
    """Token ids of one row, without padding.

    Raises:
        InvalidArgumentError: If there is none: a causal model needs a token to start from.
    """
    ids = observations["input_ids"][row][observations["attention_mask"][row].astype(bool)]
    if not len(ids):
        raise InvalidArgumentError(
            "attention_mask", 0, "an observation has no token: prompts need at least one."
        )
    return ids


def _unshaped_rewards(infos: dict[str, Any], rewards: NDArray[Any]) -> NDArray[Any]:
    """What step would have paid without shaping, (num_envs,)."""
    if "unshaped_reward" not in infos:
        return rewards
    return np.where(infos["_unshaped_reward"], infos["unshaped_reward"], rewards)


def _info_of_row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """The entries of a vector environment's infos that belong to a row, according to the masks.

    Dicts within the infos, such as the statistics of RecordEpisodeStatistics, are left out.
    """
    return {
        key: values[row]
        for key, values in infos.items()
        if not (key.startswith("_") or isinstance(values, dict))
        and f"_{key}" in infos
        and infos[f"_{key}"][row]
    }


def _check_appended(
    env: VectorEnv,
    observations: dict[str, NDArray[Any]],
    rows: NDArray[np.int64],
    storage: _Storage,
    episodes: NDArray[np.int64],
) -> None:
    """Make sure that the environment appended the action to the text, as the reader assumes."""
    ids = np.asarray(observations["input_ids"])[rows]
    valid = np.asarray(observations["attention_mask"])[rows].astype(bool)
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    seen = ids[np.arange(len(rows)), last], valid.sum(axis=1)
    lengths = storage.lengths[episodes]
    expected = storage.input_ids[episodes, lengths - 1], lengths
    if not np.array_equal(seen, expected):
        raise InvalidArgumentError(
            "env",
            env,
            "a step must append the chosen token to the observation, and nothing else: "
            "remove wrappers that change actions or observations.",
        )
