"""Credit is handed over at the end of an episode, single and batched."""

from __future__ import annotations

import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper

from tests.wrappers.helpers import (
    EOS,
    MODES,
    N,
    finished_episodes,
    make_env,
    make_envs,
    run_episode,
)
from textgym.credit import CREDIT_ASSIGNERS, AttentionCredit, ShapingCredit, SparseCredit
from textgym.credit.potentials import AttentionWeightedPrefixScore
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionMap, Completions, PrefixScores
from textgym.wrappers import AttentionShaping, CreditAssignment, PotentialShaping, vector


@pytest.mark.parametrize("name", CREDIT_ASSIGNERS)
@pytest.mark.parametrize("end_early", [False, True])
def test_credit_has_one_number_per_step_and_sums_to_what_was_paid(
    tiny, make_credit, name, end_early
):
    env = CreditAssignment(make_env(tiny), make_credit(name))
    for seed in range(4):
        rewards, infos = run_episode(env, seed, end_early=end_early)
        credit = infos[-1]["credit"]
        assert credit.dtype == np.float32
        assert credit.shape == rewards.shape
        assert credit.sum() == pytest.approx(rewards.sum(), abs=1e-5)
        assert all("credit" not in info for info in infos[:-1])


def test_the_episode_after_a_reset_below_starts_from_nothing(tiny):
    env = CreditAssignment(gym.wrappers.Autoreset(make_env(tiny)), "abc")
    env.reset(seed=0)
    episodes, paid = [], []
    while len(episodes) < 3:
        _, reward, terminated, _, info = env.step(40)
        if env.unwrapped.last_step.tokens[0] >= 0:  # the others only reset
            paid.append(reward)
        if terminated:
            episodes.append((paid, info["credit"]))
            paid = []
    for rewards, credit in episodes:
        assert credit.shape == (len(rewards),)
        assert credit.sum() == pytest.approx(sum(rewards), abs=1e-5)


@pytest.mark.parametrize("credit", [SparseCredit, AttentionCredit, ShapingCredit])
def test_credit_measured_from_the_prompt_sums_to_what_was_paid_minus_the_prompts_score(
    tiny, reward_model, tokenizer, credit
):
    env = CreditAssignment(make_env(tiny), credit(start="prompt"))
    options = {"prompt": "This film", "max_new_tokens": 4}
    rewards, infos = run_episode(env, seed=0, options=options)
    prompt = tokenizer("This film")["input_ids"]
    alone = reward_model.read(Completions.from_lists([prompt[:-1]], [prompt[-1:]])).score.item()
    assert infos[-1]["credit"].sum() == pytest.approx(rewards.sum() - alone, abs=1e-5)
    assert abs(alone) > 1e-3


class Length:
    """A reward model with the one method that it needs."""

    def read(self, completions, readouts=()):
        return completions.with_score(completions.completion_mask.sum(1))


def test_a_reward_model_of_your_own_needs_only_read(tiny):
    own = {**tiny, "reward_model": Length()}
    env = CreditAssignment(PotentialShaping(make_env(own), lambda *ids: 0.0), "uniform")
    rewards, infos = run_episode(env, seed=0)
    assert infos[-1]["credit"].sum() == pytest.approx(len(rewards))


def test_what_the_reward_model_cannot_give_is_refused_at_construction(tiny):
    env = make_env(tiny)
    envs = make_envs(tiny)
    for credit, message in (
        (AttentionCredit(layers=2), "layers=2"),
        (ShapingCredit(AttentionWeightedPrefixScore(heads=4)), "heads=4"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            CreditAssignment(env, credit)
        with pytest.raises(InvalidArgumentError, match=message):
            vector.CreditAssignment(envs, credit)


def test_attention_credit_is_the_reward_models_attention_row(tiny, classifier, tokenizer):
    env = CreditAssignment(make_env(tiny), AttentionCredit(beta=0.8))
    env.reset(seed=0, options={"prompt": "This film", "max_new_tokens": 4})
    prompt = tokenizer("This film")["input_ids"]
    actions = [40, 50, 60, 70]
    for action in actions:
        *_, info = env.step(action)
    classifier.set_attn_implementation("eager")
    with torch.no_grad():
        output = classifier(input_ids=torch.tensor([[*prompt, *actions]]), output_attentions=True)
    classifier.set_attn_implementation("sdpa")
    row = output.attentions[-1][0].mean(0)[-1, len(prompt) :]
    expected = 0.8 * info["score"] * row / row.sum()
    expected[-1] += 0.2 * info["score"]
    np.testing.assert_allclose(info["credit"], expected, atol=1e-5)


def test_credit_needs_no_forward_pass_of_its_own(tiny, monkeypatch):
    env = CreditAssignment(make_env(tiny), "shaping")
    calls = []
    read = env.unwrapped.reward_model.read
    monkeypatch.setattr(
        env.unwrapped.reward_model,
        "read",
        lambda batch, readouts: calls.append(readouts) or read(batch, readouts),
    )
    run_episode(env, seed=0)
    assert calls == [frozenset({AttentionMap(), PrefixScores()})]


def test_a_truncated_episode_has_its_rewards_as_credit(tiny):
    env = gym.make("ABC-RLHF-v0", max_episode_steps=2, **tiny)
    rewards, infos = run_episode(CreditAssignment(env), seed=0, options={"max_new_tokens": 9})
    np.testing.assert_array_equal(infos[-1]["credit"], rewards)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("assigner", [AttentionCredit(), ShapingCredit(start="prompt")])
def test_batched_credit_equals_single_credit(tiny, mode, assigner):
    envs = vector.CreditAssignment(make_envs(tiny, mode), assigner)
    count = 0
    for scored, rewards, final in finished_episodes(envs, seed=1):
        credit = final["credit"][: len(rewards)]
        expected_sum = rewards.sum() - assigner.start_values(scored).item()
        assert credit.sum() == pytest.approx(expected_sum, abs=1e-5)
        alone = Completions(scored.input_ids, scored.attention_mask, scored.completion_mask)
        expected = assigner(envs.unwrapped.reward_model.read(alone, assigner.readouts))
        np.testing.assert_allclose(credit, expected[scored.completion_mask].numpy(), atol=1e-5)
        count += 1
    assert count > 10


@pytest.mark.parametrize("mode", MODES)
def test_batched_credit_is_a_matrix_with_zeros_after_the_last_token(tiny, mode):
    envs = vector.CreditAssignment(make_envs(tiny, mode), "uniform")
    envs.reset(seed=0, options={"max_new_tokens": 9})
    assert "credit" not in envs.step(np.full(N, 40))[-1]
    *_, infos = envs.step(np.array([EOS, 40, 40, EOS]))
    place = infos["final_info"] if mode is AutoresetMode.SAME_STEP else infos
    credit, score = place["credit"], place["score"]
    assert (credit.shape, credit.dtype) == ((N, 9), np.float32)
    assert place["_credit"].tolist() == [True, False, False, True]
    np.testing.assert_allclose(credit[:, :2].sum(axis=1), score, atol=1e-6)
    assert np.abs(credit[[0, 3], :2]).min() > 1e-6
    assert not credit[:, 2:].any()
    assert not credit[1:3].any()


def test_a_second_episode_of_a_row_starts_from_nothing(tiny):
    envs = vector.CreditAssignment(make_envs(tiny, AutoresetMode.DISABLED), "uniform")
    envs.reset(seed=0, options={"max_new_tokens": 9})
    envs.step(np.full(N, 40))
    envs.reset(options={"max_new_tokens": 1, "reset_mask": np.array([True, False, False, False])})
    *_, infos = envs.step(np.full(N, 40))
    assert infos["_credit"].tolist() == [True, False, False, False]
    assert infos["credit"][0].tolist() == [pytest.approx(infos["score"][0]), *[0.0] * 8]


class StopAfterTwo(VectorWrapper):
    """A limit from outside: every row is cut off at its second step."""

    def step(self, actions):
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        return observations, rewards + 0.5, terminated, self.cuts(truncated), infos

    def cuts(self, truncated):
        return self.unwrapped.completions.completion_mask.sum(1).numpy() >= 2


def test_rows_that_are_cut_off_have_their_rewards_as_credit(tiny):
    envs = StopAfterTwo(make_envs(tiny, AutoresetMode.DISABLED))
    envs = vector.CreditAssignment(envs, "uniform")
    envs.reset(seed=0, options={"max_new_tokens": 9})
    assert "credit" not in envs.step(np.full(N, 40))[-1]
    *_, infos = envs.step(np.full(N, 40))
    np.testing.assert_array_equal(infos["credit"], [[0.5, 0.5, *[0.0] * 7]] * N)
    assert infos["_credit"].all()


class TwoTokensPerStep(gym.Wrapper):
    def step(self, action):
        self.env.step(action)
        return self.env.step(action)


class TwoTokensPerStepInRows(VectorWrapper):
    def step(self, actions):
        self.env.step(actions)
        return self.env.step(actions)


def test_steps_of_several_tokens_are_refused_instead_of_misplacing_credit(tiny):
    env = CreditAssignment(TwoTokensPerStep(make_env(tiny)), "uniform")
    env.reset(seed=0, options={"max_new_tokens": 4})
    env.step(40)
    with pytest.raises(InvalidArgumentError, match="below wrappers that take several steps"):
        env.step(40)
    envs = make_envs(tiny, AutoresetMode.DISABLED)
    envs = vector.CreditAssignment(TwoTokensPerStepInRows(envs), "uniform")
    envs.reset(seed=0, options={"max_new_tokens": 4})
    envs.step(np.full(N, 40))
    with pytest.raises(InvalidArgumentError, match="below wrappers that take several steps"):
        envs.step(np.full(N, 40))


@pytest.mark.parametrize(
    "wrap", [CreditAssignment, PotentialShaping, lambda env, own: AttentionShaping(env, 1.0, own)]
)
def test_what_is_passed_to_a_wrapper_is_not_copied(tiny, wrap):
    """It may hold a model, or something that cannot be copied, such as a lock."""

    class Own:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, *texts):
            raise AssertionError

    own = Own()
    saved = wrap(make_env(tiny), own)._saved_kwargs
    assert own in saved.values()
