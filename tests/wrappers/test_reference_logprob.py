"""The reference term against plain forwards, and rows that do not act."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.wrappers.helpers import EOS, MODES, N, count_tokens, make_env, make_envs, scripted, texts
from textgym.agents import ActionRules, LanguageModelPolicy
from textgym.errors import InvalidArgumentError
from textgym.wrappers import (
    CreditAssignment,
    LanguageModelFeatures,
    ReferenceLogProb,
    TopKActions,
    vector,
)


def expected_logprobs(model, base, prompt, completion):
    """What the bundled agents' reference policy says about a completion."""
    rules = ActionRules(base.task.vocab_size, base.task.eos_token_id, base.min_new_tokens)
    ids = torch.tensor([[*prompt, *completion]])
    mask = torch.ones_like(ids).bool()
    with torch.no_grad():
        policy = LanguageModelPolicy(model, rules)
        return policy.evaluate(ids, mask, mask[:, len(prompt) :]).logprobs[0].numpy()


def test_the_term_is_the_log_probability_of_the_token_in_the_masked_distribution(
    tiny, language_model
):
    env = ReferenceLogProb(make_env(tiny, min_new_tokens=3), 0.5, language_model)
    env.reset(seed=0, options={"max_new_tokens": 9})
    prompt = texts(env)[0]
    actions = [40, 50, 60, 70, EOS]
    infos = [env.step(action)[-1] for action in actions]
    expected = expected_logprobs(language_model, env.unwrapped, prompt, actions)
    terms = [info["reference_logprob"] for info in infos]
    np.testing.assert_allclose(terms, 0.5 * expected, atol=1e-5)
    assert infos[-1]["unshaped_return"] == pytest.approx(infos[-1]["score"])
    assert infos[-1]["shaped_return"] == pytest.approx(infos[-1]["score"] + sum(terms))


def test_an_illegal_end_is_measured_without_the_rule(tiny, language_model):
    env = ReferenceLogProb(make_env(tiny, min_new_tokens=3), 1.0, language_model)
    env.reset(seed=0)
    with torch.no_grad():
        logits = language_model(torch.tensor(texts(env))).logits[0, -1]
    _, reward, terminated, _, info = env.step(EOS)
    assert terminated
    assert info["reference_logprob"] == pytest.approx(float(logits.log_softmax(0)[EOS]), abs=1e-5)
    assert np.isfinite(reward)


def test_the_token_is_seen_through_wrappers_that_change_actions(tiny, language_model):
    outside = ReferenceLogProb(TopKActions(make_env(tiny), 5, language_model), 1.0, language_model)
    inside = TopKActions(ReferenceLogProb(make_env(tiny), 1.0, language_model), 5, language_model)
    for env in (outside, inside):
        env.reset(seed=0, options={"max_new_tokens": 4})
        prompt = texts(env)[0]
        terms = [env.step(action)[-1]["reference_logprob"] for action in (4, 0, 2, 3)]
        completion = texts(env)[0][len(prompt) :]
        expected = expected_logprobs(language_model, env.unwrapped, prompt, completion)
        np.testing.assert_allclose(terms, expected, atol=1e-5)


def test_credit_outside_covers_the_term(tiny, language_model):
    env = TopKActions(make_env(tiny), 5, language_model)
    env = CreditAssignment(ReferenceLogProb(env, 0.1, language_model))
    env.reset(seed=0, options={"max_new_tokens": 4})
    steps = [env.step(action) for action in (4, 0, 2, 3)]
    credit, info = steps[-1][-1]["credit"], steps[-1][-1]
    assert credit.sum() == pytest.approx(sum(step[1] for step in steps), abs=1e-5)
    assert credit.sum() != pytest.approx(info["score"], abs=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_paid_for_their_own_tokens_and_only_when_they_act(tiny, language_model, mode):
    envs = vector.ReferenceLogProb(make_envs(tiny, mode), 0.3, language_model)
    envs.reset(seed=3)
    base = envs.unwrapped
    sums, prompts = np.zeros(N), [list(text) for text in texts(base)]
    count = 0
    for actions in scripted(300, 25, early_end=5):
        waiting, before = base.ended, texts(base)
        _, rewards, ended, _, infos = envs.step(actions)
        np.testing.assert_array_equal(infos["_reference_logprob"], ~waiting)
        np.testing.assert_allclose(
            infos["unshaped_reward"] + infos["reference_logprob"], rewards, atol=1e-6
        )
        sums += infos["reference_logprob"]
        for row in range(N):
            if waiting[row]:
                assert rewards[row] == infos["reference_logprob"][row] == 0
                if mode is AutoresetMode.NEXT_STEP:
                    prompts[row] = texts(base)[row]
            elif ended[row]:
                completion = [*before[row], actions[row]][len(prompts[row]) :]
                expected = expected_logprobs(language_model, base, prompts[row], completion)
                assert sums[row] == pytest.approx(0.3 * expected.sum(), abs=1e-4)
                final = infos["final_info"] if mode is AutoresetMode.SAME_STEP else infos
                shaped = final["score"][row] + sums[row]
                assert final["shaped_return"][row] == pytest.approx(shaped, abs=1e-4)
                assert final["unshaped_return"][row] == pytest.approx(final["score"][row])
                prompts[row], sums[row] = texts(base)[row], 0.0
                count += 1
        if mode is AutoresetMode.DISABLED and ended.any():
            envs.reset(options={"reset_mask": ended})
            for row in np.flatnonzero(ended):
                prompts[row] = texts(base)[row]
    assert count > 8


def test_one_pass_serves_features_candidates_and_the_term(tiny, language_model):
    envs = vector.LanguageModelFeatures(make_envs(tiny, AutoresetMode.DISABLED), language_model)
    envs = vector.TopKActions(envs, 5, language_model)
    envs = vector.ReferenceLogProb(envs, 0.1, language_model)
    with count_tokens(language_model) as sizes:
        envs.reset(seed=0, options={"prompt": "This film", "max_new_tokens": 4})
        prompt = len(texts(envs)[0])
        for _ in range(6):
            envs.step(np.zeros(N, dtype=int))
    assert sizes == [N * prompt, N, N, N, N]


def test_environments_do_not_share_what_was_read(tiny, language_model):
    first, second = (LanguageModelFeatures(make_env(tiny), language_model) for _ in range(2))
    one, _ = first.reset(seed=0, options={"prompt": "I"})
    second.reset(seed=0, options={"prompt": "This film"})
    again, _ = first.reset(seed=0, options={"prompt": "I"})
    np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize("coef", [float("nan"), float("inf"), "0.1", None, True])
def test_a_bad_coefficient_is_refused(tiny, language_model, coef):
    with pytest.raises(InvalidArgumentError, match="coef"):
        ReferenceLogProb(make_env(tiny), coef, language_model)
    with pytest.raises(InvalidArgumentError, match="coef"):
        vector.ReferenceLogProb(make_envs(tiny), coef, language_model)


def test_a_second_reference_is_refused(tiny, language_model):
    env = ReferenceLogProb(make_env(tiny), 0.1, language_model)
    with pytest.raises(InvalidArgumentError, match="ReferenceLogProb already"):
        ReferenceLogProb(env, 0.1, language_model)
    envs = vector.ReferenceLogProb(make_envs(tiny), 0.1, language_model)
    with pytest.raises(InvalidArgumentError, match="ReferenceLogProb already"):
        vector.ReferenceLogProb(envs, 0.1, language_model)
