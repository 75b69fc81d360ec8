from __future__ import annotations

from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorWrapper
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorRecordEpisodeStatistics

from textgym.agents.environment import action_rules, as_vector_env
from textgym.agents.policy import LanguageModelPolicy
from textgym.agents.rollout import Rollout, collect_episodes
from textgym.errors import InvalidArgumentError


@pytest.fixture
def make_policy(make_model, make_env):
    def make(architecture: str = "qwen3", temperature: float = 1.0) -> LanguageModelPolicy:
        rules = action_rules(as_vector_env(make_env()))
        return LanguageModelPolicy(make_model(architecture), rules, temperature)

    return make


class Shaping(VectorWrapper):
    """Pays 1 more in every step, and tells what it was without."""

    def step(self, actions):
        waiting = np.array([env.ended for env in self.env.unwrapped.envs])
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        infos["unshaped_reward"], infos["_unshaped_reward"] = rewards, ~waiting
        return observations, rewards + ~waiting, terminated, truncated, infos


class Credit(VectorWrapper):
    """Hands over 0, 1, 2, … as credit, ``num_missing`` entries too few.

    With ``behind``, all rows are padded to one width, with this number behind the last step.
    """

    def __init__(self, env, behind: float | None = None, num_missing: int = 0) -> None:
        super().__init__(env)
        self.behind, self.num_missing = behind, num_missing

    def step(self, actions):
        *rest, infos = self.env.step(actions)
        if "_score" in infos:
            infos["_credit"] = infos["_score"]
            infos["credit"] = np.full(self.num_envs, None, dtype=object)
            if self.behind is not None:
                infos["credit"] = np.full((self.num_envs, 6), self.behind, dtype=np.float32)
            for row in np.flatnonzero(infos["_score"]):
                length = len(self.env.unwrapped.envs[row].completion) - self.num_missing
                credit = np.arange(length, dtype=np.float32)
                if self.behind is None:
                    infos["credit"][row] = credit
                else:
                    infos["credit"][row, :length] = credit
        return *rest, infos


def rows_of(rollout: Rollout) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each episode, read off the layout."""
    num_prompt = rollout.input_ids.shape[1] - rollout.completion_mask.shape[1]
    return [
        (ids[:num_prompt][mask[:num_prompt]].tolist(), ids[num_prompt:][mask[num_prompt:]].tolist())
        for ids, mask in zip(rollout.input_ids, rollout.attention_mask, strict=True)
    ]


def test_a_rollout_carries_the_token_budgets(make_policy, make_vector_env, generator) -> None:
    policy, env = make_policy(), make_vector_env(3)
    rollout = collect_episodes(policy, env, 12, generator)  # rows restart
    budgets, lengths = rollout.token_budgets, rollout.episode_lengths
    has_eos = (rollout.input_ids[:, -rollout.completion_mask.shape[1] :] == env.envs[0].EOS).any(
        dim=1
    )
    assert torch.equal(budgets[~has_eos], lengths[~has_eos])
    assert (budgets >= lengths).all()
    assert len(set(budgets[~has_eos].tolist())) > 1


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_cached_sampling_and_whole_forward_agree(
    make_policy, make_vector_env, generator, architecture: str
) -> None:
    policy = make_policy(architecture, temperature=0.8)
    rollout = collect_episodes(policy, make_vector_env(8), 16, generator)
    lengths = rollout.attention_mask.sum(1) - rollout.episode_lengths
    assert len(set(lengths.tolist())) > 1  # prompts are ragged
    assert len(set(rollout.episode_lengths.tolist())) > 1  # completions too
    with torch.no_grad():
        evaluation = policy.evaluate(
            rollout.input_ids, rollout.attention_mask, rollout.completion_mask
        )
    torch.testing.assert_close(evaluation.logprobs, rollout.logprobs, atol=1e-5, rtol=1e-5)
    assert (rollout.logprobs[rollout.completion_mask] < 0).all()


def test_rows_lose_few_steps_while_episodes_are_left(
    make_policy, make_vector_env, generator
) -> None:
    class Busy(VectorWrapper):
        def __init__(self, env) -> None:
            super().__init__(env)
            self.playing: list[int] = []

        def step(self, actions):
            self.playing.append(sum(not env.ended for env in self.env.unwrapped.envs))
            return self.env.step(actions)

    env = Busy(make_vector_env(4))
    rollout = collect_episodes(make_policy(), env, 40, generator)
    lengths = rollout.episode_lengths
    assert sum(env.playing) == lengths.sum()
    # Less than playing in rounds, in which all rows wait for the longest episode.
    assert len(env.playing) < lengths.view(-1, 4).amax(dim=1).sum()
    # Before the last episodes, no more than three rows' worth of steps between two restarts.
    lost = 0
    for playing in env.playing[: -int(lengths.max())]:
        lost = lost + 4 - playing if playing < 4 else 0
        assert lost < 4


def test_episodes_keep_the_order_of_their_seeds(make_policy, make_vector_env) -> None:
    """Whichever row plays them, and whenever."""
    rollouts = [
        collect_episodes(
            make_policy(),
            make_vector_env(num_envs),
            12,
            generator=torch.Generator().manual_seed(0),
            seed_generator=torch.Generator().manual_seed(9),
        )
        for num_envs in (1, 4, 12)
    ]
    assert rollouts[0].prompts == rollouts[1].prompts == rollouts[2].prompts
    assert len(set(rollouts[0].prompts)) > 1


def test_layout_holds_what_the_environment_saw(make_policy, make_vector_env, generator) -> None:
    rollout = collect_episodes(make_policy(), make_vector_env(4), 8, generator)
    for row, (prompt, completion) in enumerate(rows_of(rollout)):
        assert " ".join(map(str, prompt)) == rollout.prompts[row]
        assert " ".join(map(str, completion)) == rollout.completions[row]


def test_eos_is_not_sampled_too_early(make_model, make_vector_env, generator) -> None:
    env = make_vector_env(8)
    eos = env.tokenizer.eos_token_id
    model = make_model()
    with torch.no_grad():  # a model that wants to end at once
        model.lm_head.weight.zero_()
        model.lm_head = torch.nn.Linear(16, 20)
        model.lm_head.bias[eos] = 20.0
    rollout = collect_episodes(LanguageModelPolicy(model, action_rules(env)), env, 32, generator)
    for _, completion in rows_of(rollout):
        assert completion.index(eos) == 3 if eos in completion else len(completion) == 3
    assert any(eos in completion for _, completion in rows_of(rollout))


def test_rewards_lie_at_the_token_that_was_paid(
    make_policy, make_env, make_vector_env, generator
) -> None:
    rollout = collect_episodes(make_policy(), make_vector_env(8), 8, generator)
    for row, (_, completion) in enumerate(rows_of(rollout)):
        share = completion.count(make_env.TARGET) / len(completion)
        expected = torch.zeros_like(rollout.rewards[row])
        expected[len(completion) - 1] = share
        torch.testing.assert_close(rollout.rewards[row], expected)
        torch.testing.assert_close(rollout.scores[row].item(), share, rtol=1e-6, atol=1e-6)
    assert torch.equal(rollout.credit, rollout.rewards)


@pytest.mark.parametrize("behind", [None, 0.0], ids=["one array per row", "padded matrix"])
def test_credit_of_the_infos_is_used(make_policy, make_vector_env, generator, behind) -> None:
    rollout = collect_episodes(make_policy(), Credit(make_vector_env(4), behind), 8, generator)
    for row, length in enumerate(rollout.episode_lengths.tolist()):
        assert rollout.credit[row, :length].tolist() == list(range(length))
        assert (rollout.credit[row, length:] == 0).all()
    assert torch.equal(rollout.env_returns, rollout.scores)


@pytest.mark.parametrize("arguments", [{"num_missing": 1}, {"behind": 0.5}, {"behind": np.nan}])
def test_credit_of_another_length_is_refused(
    make_policy, make_vector_env, generator, arguments
) -> None:
    env = Credit(make_vector_env(4, min_new_tokens=4), **arguments)
    with pytest.raises(InvalidArgumentError, match="one number per step"):
        collect_episodes(make_policy(), env, 8, generator)


def test_score_stays_unshaped_where_step_pays_shaping(
    make_policy, make_vector_env, generator
) -> None:
    rollout = collect_episodes(make_policy(), Shaping(make_vector_env(4)), 8, generator)
    torch.testing.assert_close(rollout.env_returns, rollout.scores + rollout.episode_lengths)


def test_score_falls_back_to_the_unshaped_rewards(make_policy, make_vector_env, generator) -> None:
    class Silent(VectorWrapper):
        def step(self, actions):
            *rest, infos = self.env.step(actions)
            return *rest, {key: value for key, value in infos.items() if "score" not in key}

    policy = make_policy()
    told = collect_episodes(policy, make_vector_env(4), 4, torch.Generator().manual_seed(3))
    env = Shaping(make_vector_env(4))
    env = Silent(env)
    untold = collect_episodes(policy, env, 4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(untold.scores, told.scores)


def test_a_rollout_does_not_depend_on_the_past_of_the_environment(
    make_policy, make_vector_env
) -> None:
    policy, used = make_policy(), make_vector_env(4)
    collect_episodes(policy, used, 4, torch.Generator().manual_seed(1))
    first, second = (
        collect_episodes(policy, env, 8, torch.Generator().manual_seed(2))
        for env in (used, make_vector_env(4))
    )
    for entry in fields(Rollout):
        a, b = getattr(first, entry.name), getattr(second, entry.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_equal_seed_streams_give_equal_prompts(make_policy, make_vector_env) -> None:
    first, second = (
        collect_episodes(
            make_policy(),
            make_vector_env(4),
            8,
            generator=torch.Generator().manual_seed(stream),
            seed_generator=torch.Generator().manual_seed(9),
        )
        for stream in (0, 1)
    )
    assert first.prompts == second.prompts
    assert first.completions != second.completions


def test_a_single_environment_plays_one_episode_after_the_other(
    make_policy, make_env, generator
) -> None:
    rollout = collect_episodes(make_policy(), make_env(), 3, generator)
    assert len(rollout.scores) == 3
    assert len(set(rollout.prompts)) == 3


def test_truncated_episodes_are_marked(make_policy, make_env, generator) -> None:
    env = gym.wrappers.TimeLimit(make_env(min_new_tokens=3, max_new_tokens=6), 4)
    rollout = collect_episodes(make_policy(), env, 12, generator)
    ended = torch.tensor([completion != "" for completion in rollout.completions])
    assert torch.equal(rollout.truncated, ~ended)
    assert 0 < rollout.truncated.sum() < 12


@pytest.mark.parametrize("num_episodes", [0, 6])
def test_episodes_must_fill_the_rows(
    make_policy, make_vector_env, generator, num_episodes: int
) -> None:
    with pytest.raises(InvalidArgumentError, match="num_envs=4"):
        collect_episodes(make_policy(), make_vector_env(4), num_episodes, generator)


def test_an_environment_that_changes_the_token_is_refused(make_policy, make_env, generator) -> None:
    env = gym.wrappers.TransformAction(make_env(), lambda action: (action + 1) % 20, None)
    with pytest.raises(InvalidArgumentError, match="append the chosen token"):
        collect_episodes(make_policy(), env, 1, generator)


@pytest.mark.parametrize("is_single", [True, False])
def test_statistics_in_the_infos_change_no_episode(
    make_policy, make_env, make_vector_env, is_single: bool
) -> None:
    """RecordEpisodeStatistics writes a dict of arrays into the infos, not an array."""
    policy = make_policy()
    if is_single:
        envs = make_env(), RecordEpisodeStatistics(make_env())
    else:
        envs = make_vector_env(2), VectorRecordEpisodeStatistics(make_vector_env(2))
    plain, recorded = (
        collect_episodes(policy, env, 4, torch.Generator().manual_seed(0)) for env in envs
    )
    assert torch.equal(plain.input_ids, recorded.input_ids)
    assert torch.equal(plain.scores, recorded.scores)
