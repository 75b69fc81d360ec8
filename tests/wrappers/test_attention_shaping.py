"""Shaping from a cache: what it costs, when it reads the whole text, and its terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.wrappers.helpers import EOS, MODES, N, count_tokens, make_env, make_envs, play, scripted
from textgym.credit.potentials import (
    AttentionWeightedPrefixScore,
    FunctionPotential,
    Potential,
    PrefixScore,
)
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionRow, Completions, PrefixScores, RewardModel
from textgym.wrappers import AttentionShaping, ReferenceLogProb, vector


class ReadAtOnce(RewardModel):
    """The same reward model; having a reading of its own, it is not read token by token."""

    def read(self, completions, readouts=()):
        return super().read(completions, readouts)


class Jumps(Potential):
    """Φ of the last state from the potentials of earlier ones: the maximum so far."""

    name = "jumps"
    readouts = AttentionWeightedPrefixScore().readouts
    needs_causal_reward_model = True

    def __call__(self, scored):
        inner = AttentionWeightedPrefixScore()(scored)
        return inner.cummax(dim=1).values * scored.completion_mask


POTENTIALS = [
    AttentionWeightedPrefixScore(),
    AttentionWeightedPrefixScore(layers=(0, 1), heads="max"),
    PrefixScore(),
    Jumps(),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("start", ["zero", "prompt"])
def test_the_cache_pays_what_reading_at_once_pays(
    tiny, classifier, tokenizer, mode, potential, start
):
    """Over many ragged episodes, early ends and rows that are reset while others go on."""
    slow = {**tiny, "reward_model": ReadAtOnce(classifier, tokenizer)}
    envs = [
        vector.AttentionShaping(make_envs(arguments, mode), 0.7, potential, 0.9, start=start)
        for arguments in (tiny, slow)
    ]
    assert [one._term_reader.is_incremental for one in envs] == [True, False]
    for one in envs:
        one.reset(seed=3)
    paid = []
    for actions in scripted(300, 30, early_end=EOS):
        (_, fast, ended, _, _), (_, expected, _, _, _) = (one.step(actions) for one in envs)
        np.testing.assert_allclose(fast, expected, atol=1e-5)
        paid.append(fast)
        if mode is AutoresetMode.DISABLED and ended.any():
            for one in envs:
                one.reset(options={"reset_mask": ended})
    assert np.abs(paid).mean() > 0.05


def test_an_episode_costs_one_forward_of_the_reward_model_besides_the_score(tiny, reward_model):
    env = AttentionShaping(make_env(tiny))
    with count_tokens(reward_model.model.base_model) as sizes:
        env.reset(seed=0, options={"prompt": "This film", "max_new_tokens": 9})
        prompt = int(env.unwrapped.completions.prompt_mask.sum())
        for _ in range(9):
            env.step(40)
    # Prompt and first token, seven more one by one; the ninth ends the episode and is scored.
    assert sizes == [prompt + 1, *[1] * 7, prompt + 9]


def test_with_start_prompt_the_prompt_is_read_before_the_first_token(tiny, reward_model):
    env = AttentionShaping(make_env(tiny), start="prompt")
    with count_tokens(reward_model.model.base_model) as sizes:
        env.reset(seed=0, options={"prompt": "This film", "max_new_tokens": 9})
        prompt = int(env.unwrapped.completions.prompt_mask.sum())
        for _ in range(9):
            env.step(40)
    assert sizes == [prompt, *[1] * 8, prompt + 9]


def test_a_batch_costs_a_token_per_row_and_step(tiny, reward_model):
    envs = vector.AttentionShaping(make_envs(tiny, AutoresetMode.DISABLED))
    envs.reset(seed=0, options={"prompt": "I", "max_new_tokens": 9})
    prompt = int(envs.unwrapped.completions.prompt_mask[0].sum())
    with count_tokens(reward_model.model.base_model) as sizes:
        for _ in range(9):
            envs.step(np.full(N, 40))
    assert sizes == [N * (prompt + 1), *[N] * 7, N * (prompt + 9)]


def test_a_function_is_called_for_the_newest_state_only_and_reads_no_model(tiny, reward_model):
    calls = []

    def length(prompt, completion):
        calls.append(len(completion))
        return 0.5 * len(completion) + 3.0

    env = AttentionShaping(make_env(tiny), potential=length)
    with count_tokens(reward_model.model.base_model) as sizes:
        steps = play(env, [40] * 5, seed=0, options={"prompt": "I", "max_new_tokens": 5})
    assert sorted(calls) == [0, 1, 2, 3, 4]
    assert [info["shaping"] for *_, info in steps[1:]] == [0.5, 0.5, 0.5, 0.5, -2.0]
    assert len(sizes) == 1  # the score


@pytest.mark.parametrize("potential", [PrefixScore(), FunctionPotential(lambda p, c: len(c) ** 2)])
def test_the_newest_value_is_the_last_of_all(reward_model, potential):
    ids = torch.tensor([[0, 5, 6, 7, 8], [5, 6, 9, 0, 0], [5, 6, 0, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    completion = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    scored = reward_model.read(Completions(ids, mask, completion), [PrefixScores()])
    values = potential(scored)
    expected = [values[0, 4], values[1, 2], potential.start_values(scored)[2]]
    torch.testing.assert_close(potential.newest(scored), torch.tensor(expected))


class NeedsARow(Potential):
    """Φ from a read-out of the whole text's end."""

    name = "needs-a-row"
    readouts = frozenset({AttentionRow()})

    def __call__(self, scored):
        return scored[AttentionRow()] * scored.completion_mask


def test_other_readouts_are_read_from_the_whole_text(tiny):
    env = AttentionShaping(make_env(tiny), potential=NeedsARow())
    assert not env._term_reader.is_incremental
    steps = play(env, [40] * 4, seed=0, options={"max_new_tokens": 4})
    assert sum(info["shaping"] for *_, info in steps[1:]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("form", ["single", "vector"])
@pytest.mark.parametrize("shaping_outside", [True, False])
def test_the_terms_of_all_wrappers_sum_to_the_reward(tiny, language_model, form, shaping_outside):
    single = form == "single"
    shaping, reference = (
        (AttentionShaping, ReferenceLogProb)
        if single
        else (vector.AttentionShaping, vector.ReferenceLogProb)
    )
    env = make_env(tiny) if single else make_envs(tiny, AutoresetMode.DISABLED)
    if shaping_outside:
        env = shaping(reference(env, 0.1, language_model), gamma=0.9)
    else:
        env = reference(shaping(env, gamma=0.9), 0.1, language_model)
    env.reset(seed=1, options={"max_new_tokens": 5})
    steps = [env.step(a if single else np.full(N, a)) for a in (40, 50, 60, 70, 80)]
    total = 0.0
    for _, reward, _, _, info in steps:
        terms = info["unshaped_reward"] + info["shaping"] + info["reference_logprob"]
        np.testing.assert_allclose(terms, reward, atol=1e-6)
        assert np.all(info["shaping"] != 0)
        assert np.all(info["reference_logprob"] < 0)
        total = total + reward
    np.testing.assert_allclose(info["unshaped_return"], info["score"], atol=1e-6)
    np.testing.assert_allclose(info["shaped_return"], total, atol=1e-5)


def test_two_potentials_are_refused(tiny):
    with pytest.raises(InvalidArgumentError, match="AttentionShaping already"):
        AttentionShaping(AttentionShaping(make_env(tiny)))
    with pytest.raises(InvalidArgumentError, match="AttentionShaping already"):
        vector.AttentionShaping(vector.AttentionShaping(make_envs(tiny)))


def test_what_the_reward_model_cannot_give_is_refused_at_construction(tiny):
    potential = AttentionWeightedPrefixScore(layers=5)
    with pytest.raises(InvalidArgumentError, match="layers=5"):
        AttentionShaping(make_env(tiny), potential=potential)
    with pytest.raises(InvalidArgumentError, match="layers=5"):
        vector.AttentionShaping(make_envs(tiny), potential=potential)


@pytest.mark.parametrize("start", ["zero", "prompt"])
def test_an_abandoned_episode_leaves_nothing_behind(tiny, start):
    """Some rows are reset in the middle; their new episodes are paid as if they were the first."""
    fresh, used = (
        vector.AttentionShaping(make_envs(tiny, AutoresetMode.DISABLED), start=start)
        for _ in range(2)
    )
    options = {"prompt": "This film", "max_new_tokens": 4}
    used.reset(seed=0, options={"prompt": "I", "max_new_tokens": 9})
    used.step(np.full(N, 70))
    used.step(np.full(N, 80))
    rows = np.array([True, False, True, False])
    used.reset(options={**options, "reset_mask": rows})
    fresh.reset(seed=0, options=options)
    for token in (40, 50, 60, 70):
        _, expected, *_ = fresh.step(np.full(N, token))
        _, rewards, _, _, infos = used.step(np.full(N, token))
        np.testing.assert_allclose(rewards[rows], expected[rows], atol=1e-5)
    if start == "zero":
        np.testing.assert_allclose(infos["shaped_return"][rows], infos["score"][rows], atol=1e-5)
