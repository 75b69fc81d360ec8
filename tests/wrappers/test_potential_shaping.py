"""Shaping: against sums done by hand, and against shaping from one forward pass."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import BertConfig, BertForSequenceClassification

from tests.wrappers.helpers import (
    EOS,
    MODES,
    N,
    finished_episodes,
    make_env,
    make_envs,
    play,
    run_episode,
)
from textgym.credit import ShapingCredit
from textgym.credit.potentials import AttentionWeightedPrefixScore, Potential, PrefixScore
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionRow, RewardModel
from textgym.wrappers import AttentionShaping, CreditAssignment, PotentialShaping, vector

POTENTIALS = [AttentionWeightedPrefixScore(), PrefixScore()]


def squares(prompt, completion):
    """Φ after t tokens is t² (plus a constant, which the start takes away)."""
    return float(len(completion) ** 2) + 7.0


def test_each_step_is_paid_the_discounted_difference_times_beta(tiny):
    env = PotentialShaping(make_env(tiny), squares, beta=0.5, gamma=0.9)
    steps = play(env, [40] * 4, seed=0, options={"max_new_tokens": 4})[1:]
    expected = [0.5 * (0.9 * 1 - 0), 0.5 * (0.9 * 4 - 1), 0.5 * (0.9 * 9 - 4), 0.5 * (0 - 9)]
    np.testing.assert_allclose([info["shaping"] for *_, info in steps], expected)
    *_, info = steps[-1]
    assert sum(step[1] for step in steps) == pytest.approx(info["score"] + sum(expected))
    assert info["unshaped_return"] == pytest.approx(info["score"])


def test_with_start_prompt_the_first_step_pays_for_leaving_the_prompts_potential(tiny):
    env = PotentialShaping(make_env(tiny), squares, beta=0.5, gamma=0.9, start="prompt")
    steps = play(env, [40] * 4, seed=0, options={"max_new_tokens": 4})[1:]
    expected = [0.5 * (0.9 * 8 - 7), 0.5 * (0.9 * 11 - 8), 0.5 * (0.9 * 16 - 11), 0.5 * (0 - 16)]
    np.testing.assert_allclose([info["shaping"] for *_, info in steps], expected)


def test_with_start_prompt_an_episode_of_one_token_is_paid_the_difference_to_the_prompt(tiny):
    env = PotentialShaping(make_env(tiny), squares, beta=2.0, start="prompt")
    *_, info = play(env, [40], seed=0, options={"max_new_tokens": 1})[-1]
    assert info["shaped_return"] == pytest.approx(info["score"] - 14)


@pytest.mark.parametrize("mode", MODES)
def test_with_start_prompt_rows_that_restart_begin_at_the_potential_of_their_prompt(tiny, mode):
    envs = vector.PotentialShaping(make_envs(tiny, mode), squares, start="prompt")
    envs.reset(seed=0, options={"max_new_tokens": 9})
    for actions, expected in (
        ([EOS, 40, 40, 40], [-7, 1, 1, 1]),  # Φ of the prompts is 7
        ([EOS, EOS, 40, 40], [-7 if mode is AutoresetMode.SAME_STEP else 0, -8, 3, 3]),
        ([40, 40, 40, EOS], [1, 1 if mode is AutoresetMode.SAME_STEP else 0, 5, -11]),
    ):
        if mode is AutoresetMode.DISABLED and expected[0] == 1:
            envs.reset(options={"reset_mask": np.array([True, False, False, False])})
        np.testing.assert_allclose(envs.step(np.array(actions))[-1]["shaping"], expected)


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_paid_for_their_own_texts(tiny, mode):
    envs = vector.PotentialShaping(make_envs(tiny, mode), squares, beta=2.0)
    envs.reset(seed=0, options={"max_new_tokens": 9})
    paid = [envs.step(np.full(N, 40))[-1]["shaping"] for _ in range(2)]
    np.testing.assert_array_equal(paid, [[2.0 * 1] * N, [2.0 * 3] * N])
    infos = envs.step(np.array([EOS, 40, 40, 40]))[-1]
    np.testing.assert_array_equal(infos["shaping"], [-2.0 * 4, *[2.0 * 5] * 3])
    infos = envs.step(np.full(N, 40))[-1]
    first = 2.0 if mode is AutoresetMode.SAME_STEP else 0.0  # a new text, or no token
    np.testing.assert_array_equal(infos["shaping"], [first, *[2.0 * 7] * 3])


def test_attention_shaping_is_potential_shaping_with_a_default(tiny):
    assert issubclass(AttentionShaping, PotentialShaping)
    assert issubclass(vector.AttentionShaping, vector.PotentialShaping)
    general = PotentialShaping(make_env(tiny), "attention-weighted-prefix-score", gamma=0.9)
    special = AttentionShaping(make_env(tiny), gamma=0.9)
    assert repr(general.potential) == repr(special.potential)
    rewards = [
        [step[1] for step in play(env, [40, 50, 60, EOS], seed=0)] for env in (general, special)
    ]
    assert rewards[0] == rewards[1]
    assert np.abs(rewards[0][1:]).min() > 1e-6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: PotentialShaping(env, PrefixScore(), beta=0.5, gamma=0.9, start="prompt"),
        lambda env: AttentionShaping(env, 0.5, PrefixScore(), 0.9, start="prompt"),
    ],
    ids=["PotentialShaping", "AttentionShaping"],
)
def test_the_wrapper_can_be_made_again_from_its_spec(tiny, wrap):
    env = wrap(make_env(tiny))
    again = gym.make(env.spec)
    assert type(again) is type(env)
    assert (again.beta, again.gamma, repr(again.potential)) == (0.5, 0.9, "PrefixScore()")
    assert again.start == "prompt"


def test_a_second_potential_is_refused_in_either_order(tiny):
    for outer, inner in (
        (PotentialShaping, AttentionShaping),
        (AttentionShaping, PotentialShaping),
    ):
        inside = inner(make_env(tiny), potential=squares)
        with pytest.raises(InvalidArgumentError, match=f"it has {inner.__name__} already"):
            outer(inside, potential=squares)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"potential": "guess"}, "potential='guess'"),
        ({"potential": squares, "beta": float("nan")}, "beta=nan"),
        ({"potential": squares, "gamma": 0.0}, "gamma=0.0"),
        ({"potential": squares, "start": "score"}, "start='score'"),
    ],
)
def test_bad_arguments_are_refused_at_construction(tiny, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        PotentialShaping(make_env(tiny), **arguments)
    with pytest.raises(InvalidArgumentError, match=message):
        vector.PotentialShaping(make_envs(tiny), **arguments)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda p: p.name)
@pytest.mark.parametrize("end_early", [False, True])
@pytest.mark.parametrize("start", ["zero", "prompt"])
def test_shaping_step_by_step_equals_shaping_from_one_forward(
    tiny, gamma, potential, end_early, start
):
    assigner = ShapingCredit(potential, beta=0.7, gamma=gamma, start=start)
    credited = CreditAssignment(make_env(tiny), assigner)
    shaped = AttentionShaping(make_env(tiny), 0.7, potential, gamma, start=start)
    for seed in range(4):
        _, infos = run_episode(credited, seed, end_early=end_early)
        rewards, _ = run_episode(shaped, seed, end_early=end_early)
        np.testing.assert_allclose(rewards, infos[-1]["credit"], atol=1e-5)
        assert np.abs(rewards).min() > 1e-6


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_the_discounted_shaping_of_an_episode_sums_to_zero(tiny, gamma):
    env = AttentionShaping(make_env(tiny), gamma=gamma)
    for seed in range(4):
        rewards, infos = run_episode(env, seed)
        shaping = np.array([info["shaping"] for info in infos])
        assert (gamma ** np.arange(len(shaping)) * shaping).sum() == pytest.approx(0, abs=1e-5)
        assert np.abs(shaping).max() > 1e-3
        np.testing.assert_allclose([i["unshaped_reward"] for i in infos] + shaping, rewards)
        assert infos[-1]["unshaped_return"] == pytest.approx(infos[-1]["score"])
        assert infos[-1]["shaped_return"] == pytest.approx(rewards.sum())


class CountTokens(Potential):
    """Φ = number of tokens: known without any model."""

    name, paper = "count", "none"
    readouts = frozenset()
    needs_causal_reward_model = False

    def __call__(self, scored):
        return scored.completion_mask.cumsum(1).float() * scored.completion_mask


def test_a_potential_of_ones_own_is_paid_as_it_is(tiny):
    env = AttentionShaping(make_env(tiny), potential=CountTokens())
    _, infos = run_episode(env, seed=0, options={"max_new_tokens": 4})
    np.testing.assert_allclose([info["shaping"] for info in infos], [1, 1, 1, -3])


def test_truncation_pays_the_potential_of_the_state_it_stops_in(tiny):
    env = gym.make("ABC-RLHF-v0", max_episode_steps=3, **tiny)
    env = AttentionShaping(env, potential=CountTokens())
    _, infos = run_episode(env, seed=0, options={"max_new_tokens": 9})
    np.testing.assert_allclose([info["shaping"] for info in infos], [1, 1, 1])
    assert infos[-1]["shaped_return"] == pytest.approx(3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("start", ["zero", "prompt"])
def test_batched_shaping_equals_batched_shaping_credit(tiny, mode, gamma, start):
    """Step-wise shaping of every row, over many resets, against one forward per episode."""
    envs = make_envs(tiny, mode)
    envs = vector.CreditAssignment(envs, ShapingCredit(gamma=gamma, start=start))
    envs = vector.AttentionShaping(envs, gamma=gamma, start=start)
    count = 0
    for _, rewards, final in finished_episodes(envs, seed=2):
        np.testing.assert_allclose(rewards, final["credit"][: len(rewards)], atol=1e-5)
        assert final["shaped_return"] == pytest.approx(rewards.sum(), abs=1e-5)
        assert final["unshaped_return"] == pytest.approx(final["score"], abs=1e-5)
        count += 1
    assert count > 10


class PaysForAttention(Potential):
    """Φ = attention of the newest token to itself: a read-out that needs the whole text at once."""

    name = "pays-for-attention"
    readouts = frozenset({AttentionRow()})

    def __call__(self, scored):
        return scored[AttentionRow()] * scored.completion_mask


@pytest.mark.parametrize(
    ("potential", "expected"),
    [(None, [1, N - 1]), (PaysForAttention(), [N, 1, N - 1, N - 1])],
    ids=["kept in a cache", "read at once"],
)
def test_shaping_reads_only_rows_whose_text_goes_on(tiny, monkeypatch, potential, expected):
    envs = make_envs(tiny, AutoresetMode.DISABLED)
    envs = vector.AttentionShaping(envs, potential=potential)
    envs.reset(seed=0, options={"max_new_tokens": 9})
    sizes = []
    read = envs.unwrapped.reward_model.read
    monkeypatch.setattr(
        envs.unwrapped.reward_model,
        "read",
        lambda batch, readouts: sizes.append(len(batch)) or read(batch, readouts),
    )
    envs.step(np.full(N, 40))
    envs.step(np.array([EOS, 40, 40, 40]))  # one row is scored, three go on
    envs.step(np.full(N, EOS))  # three are scored, none goes on
    assert sizes == expected


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_do_not_act_are_paid_nothing(tiny, mode):
    envs = make_envs(tiny, mode)
    envs = vector.AttentionShaping(envs, potential=CountTokens())
    envs.reset(seed=0, options={"max_new_tokens": 9})
    envs.step(np.full(N, 40))
    _, rewards, _, _, infos = envs.step(np.array([EOS, 40, 40, 40]))
    assert infos["shaping"].tolist() == [-1, 1, 1, 1]
    _, rewards, _, _, infos = envs.step(np.full(N, 40))
    acts = mode is AutoresetMode.SAME_STEP
    assert rewards[0] == (1 if acts else 0)
    assert infos["_shaping"].tolist() == [acts, True, True, True]


def test_attention_weighted_prefix_scores_of_an_encoder_are_refused(tiny, tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    encoder = RewardModel(BertForSequenceClassification(config), tokenizer)
    env = gym.make("ABC-RLHF-v0", **{**tiny, "reward_model": encoder})
    with pytest.raises(InvalidArgumentError, match="looks ahead"):
        AttentionShaping(env)
    with pytest.raises(InvalidArgumentError, match="looks ahead"):
        CreditAssignment(env, "shaping")
    shaped = AttentionShaping(env, potential=PrefixScore())
    credited = CreditAssignment(env, ShapingCredit(PrefixScore()))
    rewards, _ = run_episode(shaped, seed=0)
    _, infos = run_episode(credited, seed=0)
    np.testing.assert_allclose(rewards, infos[-1]["credit"], atol=1e-5)
