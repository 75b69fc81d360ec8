"""Credit assignment and shaping, single and batched, on the real environment."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from transformers import BertConfig, BertForSequenceClassification

import textgym  # noqa: F401
from textgym.credit import CREDIT_ASSIGNERS, AttentionCredit, ShapingCredit
from textgym.credit.potentials import AttentionWeightedPrefixScore, Potential, PrefixScore
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionMap, AttentionRow, Completions, PrefixScores, RewardModel
from textgym.wrappers import AttentionShaping, CreditAssignment, vector

N = 4
EOS = 2
POTENTIALS = [AttentionWeightedPrefixScore(), PrefixScore()]
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def run_episode(env, seed, options=None, end_early=False):
    """Rewards, infos and number of steps of one scripted episode."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed, options=options)
    rewards, infos, done = [], [], False
    while not done:
        action = EOS if end_early and len(rewards) == 3 else int(rng.integers(3, 300))
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        infos.append(info)
        done = terminated or truncated
    return np.array(rewards), infos


def finished_episodes(envs, seed, steps=40):
    """(completion as scored, rewards, final infos) of every episode that ends, in any mode."""
    mode = envs.unwrapped.autoreset_mode
    rng = np.random.default_rng(seed)
    envs.reset(seed=seed)
    paid = [[] for _ in range(N)]
    waiting = np.zeros(N, dtype=bool)
    for _ in range(steps):
        actions = rng.integers(3, 300, size=N)
        actions[rng.random(N) < 0.1] = EOS
        _, rewards, terminated, _, infos = envs.step(actions)
        for row in np.flatnonzero(~waiting):
            paid[row].append(rewards[row])
        ended = terminated & ~waiting
        place = infos.get("final_info", {}) if mode is AutoresetMode.SAME_STEP else infos
        for row in np.flatnonzero(ended):
            keys = [key for key in place if not key.startswith("_") and f"_{key}" in place]
            final = {key: place[key][row] for key in keys if place[f"_{key}"][row]}
            last = envs.unwrapped.last_step
            batch, index = last.scored, np.flatnonzero(last.finished).tolist().index(row)
            yield batch.select(slice(index, index + 1)), np.array(paid[row]), final
            paid[row] = []
        waiting = terminated.copy()
        if mode is AutoresetMode.SAME_STEP:
            waiting[:] = False
        if mode is AutoresetMode.DISABLED and waiting.any():
            envs.reset(options={"reset_mask": waiting})
            waiting[:] = False


@pytest.mark.parametrize("name", CREDIT_ASSIGNERS)
@pytest.mark.parametrize("end_early", [False, True])
def test_credit_has_one_number_per_step_and_sums_to_what_was_paid(
    tiny, make_credit, name, end_early
):
    env = CreditAssignment(gym.make("ABC-RLHF-v0", **tiny), make_credit(name))
    for seed in range(4):
        rewards, infos = run_episode(env, seed, end_early=end_early)
        credit = infos[-1]["credit"]
        assert credit.dtype == np.float32
        assert credit.shape == rewards.shape
        assert credit.sum() == pytest.approx(rewards.sum(), abs=1e-5)
        assert all("credit" not in info for info in infos[:-1])


def test_what_the_reward_model_cannot_give_is_refused_at_construction(tiny):
    env = gym.make("ABC-RLHF-v0", **tiny)
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=2, **tiny)
    for credit, message in (
        (AttentionCredit(layers=2), "layers=2"),
        (ShapingCredit(AttentionWeightedPrefixScore(heads=4)), "heads=4"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            CreditAssignment(env, credit)
        with pytest.raises(InvalidArgumentError, match=message):
            vector.CreditAssignment(envs, credit)


def test_attention_credit_is_the_reward_models_attention_row(tiny, classifier, tokenizer):
    env = CreditAssignment(gym.make("ABC-RLHF-v0", **tiny), AttentionCredit(beta=0.8))
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
    env = CreditAssignment(gym.make("ABC-RLHF-v0", **tiny), "shaping")
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


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda p: p.name)
@pytest.mark.parametrize("end_early", [False, True])
def test_shaping_step_by_step_equals_shaping_from_one_forward(tiny, gamma, potential, end_early):
    assigner = ShapingCredit(potential, beta=0.7, gamma=gamma)
    credited = CreditAssignment(gym.make("ABC-RLHF-v0", **tiny), assigner)
    shaped = AttentionShaping(gym.make("ABC-RLHF-v0", **tiny), 0.7, potential, gamma)
    for seed in range(4):
        _, infos = run_episode(credited, seed, end_early=end_early)
        rewards, _ = run_episode(shaped, seed, end_early=end_early)
        np.testing.assert_allclose(rewards, infos[-1]["credit"], atol=1e-5)
        assert np.abs(rewards).min() > 1e-6


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_the_discounted_shaping_of_an_episode_sums_to_zero(tiny, gamma):
    env = AttentionShaping(gym.make("ABC-RLHF-v0", **tiny), gamma=gamma)
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
    env = AttentionShaping(gym.make("ABC-RLHF-v0", **tiny), potential=CountTokens())
    _, infos = run_episode(env, seed=0, options={"max_new_tokens": 4})
    np.testing.assert_allclose([info["shaping"] for info in infos], [1, 1, 1, -3])


def test_truncation_pays_the_potential_of_the_state_it_stops_in(tiny):
    env = gym.make("ABC-RLHF-v0", max_episode_steps=3, **tiny)
    env = AttentionShaping(env, potential=CountTokens())
    _, infos = run_episode(env, seed=0, options={"max_new_tokens": 9})
    np.testing.assert_allclose([info["shaping"] for info in infos], [1, 1, 1])
    assert infos[-1]["shaped_return"] == pytest.approx(3)


@pytest.mark.parametrize("wrap", [CreditAssignment, AttentionShaping])
def test_wrapped_environments_pass_the_checker(tiny, wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*different from the unwrapped version")
        check_env(wrap(gym.make("ABC-RLHF-v0", **tiny)), skip_render_check=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["abc", "shaping"])
def test_batched_credit_equals_single_credit(tiny, mode, name):
    envs = vector.CreditAssignment(
        gym.make_vec("ABC-RLHF-v0", num_envs=N, autoreset_mode=mode, **tiny), name
    )
    assigner = envs.assigner
    count = 0
    for scored, rewards, final in finished_episodes(envs, seed=1):
        credit = final["credit"][: len(rewards)]
        assert credit.sum() == pytest.approx(rewards.sum(), abs=1e-5)
        alone = Completions(scored.input_ids, scored.attention_mask, scored.completion_mask)
        expected = assigner(envs.unwrapped.reward_model.read(alone, assigner.readouts))
        np.testing.assert_allclose(credit, expected[scored.completion_mask].numpy(), atol=1e-5)
        count += 1
    assert count > 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_batched_shaping_equals_batched_shaping_credit(tiny, mode, gamma):
    """Step-wise shaping of every row, over many resets, against one forward per episode."""
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=N, autoreset_mode=mode, **tiny)
    envs = vector.CreditAssignment(envs, ShapingCredit(gamma=gamma))
    envs = vector.AttentionShaping(envs, gamma=gamma)
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
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=N, autoreset_mode=AutoresetMode.DISABLED, **tiny)
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
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=N, autoreset_mode=mode, **tiny)
    envs = vector.AttentionShaping(envs, potential=CountTokens())
    envs.reset(seed=0, options={"max_new_tokens": 9})
    envs.step(np.full(N, 40))
    _, rewards, _, _, infos = envs.step(np.array([EOS, 40, 40, 40]))
    assert infos["shaping"].tolist() == [-1, 1, 1, 1]
    _, rewards, _, _, infos = envs.step(np.full(N, 40))
    acts = mode is AutoresetMode.SAME_STEP
    assert rewards[0] == (1 if acts else 0)
    assert infos["_shaping"].tolist() == [acts, True, True, True]


def test_the_wrong_form_of_a_wrapper_is_refused(tiny):
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=2, **tiny)
    with pytest.raises(InvalidArgumentError, match=r"textgym\.wrappers\.vector"):
        AttentionShaping(envs)
    with pytest.raises(InvalidArgumentError, match="TextGenerationVectorEnv"):
        vector.CreditAssignment(gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")]))
    with pytest.raises(InvalidArgumentError, match="TextGenerationEnv"):
        CreditAssignment(gym.make("CartPole-v1"))


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


@pytest.mark.parametrize(
    "arguments", [{"beta": float("nan")}, {"gamma": 0}, {"potential": "prefix"}]
)
def test_bad_shaping_arguments_are_refused(tiny, arguments):
    with pytest.raises(InvalidArgumentError):
        AttentionShaping(gym.make("ABC-RLHF-v0", **tiny), **arguments)
