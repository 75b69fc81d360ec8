"""A pickled or copied environment goes on exactly as the original does, with any wrapper."""

from __future__ import annotations

import copy
import pickle

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
)

from tests.conftest import tiny_config
from textgym import wrappers
from textgym.models import RewardModel
from textgym.registration import ENVIRONMENTS
from textgym.wrappers import vector

COPIES = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
    "deepcopy": copy.deepcopy,
}
PLANTED = {"model": "planted"}
WRAPPERS = {
    "ActionMask": {},
    "AttentionShaping": {},
    "CreditAssignment": {},
    "IllegalToken": {},
    "LanguageModelFeatures": {"top_k": 3, **PLANTED},
    "PotentialShaping": {"potential": "prefix-score", "start": "prompt"},
    "ReferenceLogProb": {"coef": 0.1, **PLANTED},
    "TopKActions": {"k": 4, **PLANTED},
}
"""The arguments of each wrapper, for the planted task."""


def in_mid_episode(env, num_steps=3):
    """Play some steps, so that caches hold what was read."""
    env.action_space.seed(5)
    env.reset(seed=3)
    for _ in range(num_steps):
        assert not np.any(env.step(env.action_space.sample())[2])
    return env


def assert_same_future(ours, theirs, num_steps=20):
    """Same observations, rewards, ends and infos, to the last bit, over the ends of episodes."""
    single, ended = isinstance(ours, gym.Env), 0
    for _ in range(num_steps):
        action = ours.action_space.sample()
        assert data_equivalence(action, theirs.action_space.sample(), exact=True)
        mine, other = ours.step(action), theirs.step(action)
        assert data_equivalence(mine, other, exact=True)
        ended += int(np.sum(mine[2]))
        if single and mine[2]:
            assert data_equivalence(ours.reset(), theirs.reset(), exact=True)
    assert ended > 0


def test_every_wrapper_is_tried():
    assert set(WRAPPERS) == set(wrappers.__all__) == set(vector.__all__)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_environment_goes_on(name, how):
    env = gym.make("ABC-RLHF-Planted-v0", action_mask_in_info=True)
    env = in_mid_episode(getattr(wrappers, name)(env, **WRAPPERS[name]))
    assert_same_future(env, COPIES[how](env))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_rows_go_on(name, how):
    envs = gym.make_vec("ABC-RLHF-Planted-v0", num_envs=3)
    envs = in_mid_episode(getattr(vector, name)(envs, **WRAPPERS[name]))
    assert_same_future(envs, COPIES[how](envs))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_ragged_rows_with_many_wrappers_go_on(mode, how):
    """Rows that wait or begin anew, all caches in use, and a picture of finished episodes."""
    envs = gym.make_vec(
        "ABC-RLHF-Planted-v0",
        num_envs=4,
        min_new_tokens=5,
        max_new_tokens=8,
        autoreset_mode=mode,
        render_mode="ansi",
    )
    for name in ("LanguageModelFeatures", "TopKActions", "ReferenceLogProb", "AttentionShaping"):
        envs = getattr(vector, name)(envs, **WRAPPERS[name])
    envs = in_mid_episode(vector.CreditAssignment(envs))
    for _ in range(9):
        envs.step(envs.action_space.sample())
    theirs = COPIES[how](envs)
    assert envs.render() == theirs.render()
    assert_same_future(envs, theirs, num_steps=30)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("env_id", sorted(set(ENVIRONMENTS) - {"ABC-RLHF-Long-v0"}))
def test_every_id_goes_on(env_id, how):
    env = in_mid_episode(gym.make(env_id))
    assert_same_future(env, COPIES[how](env))


def fresh(kind, tokenizer):
    """A language model of some kind that no other test has used."""
    torch.manual_seed(3)
    config = tiny_config(tokenizer)
    if kind == "gpt_neox":  # read by the library, token by token as well
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        sizes = {name: getattr(config, name) for name in (*names, "num_attention_heads")}
        config = GPTNeoXConfig(max_position_embeddings=64, initializer_range=0.3, **sizes)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["qwen3", "gpt_neox"])
def test_models_that_were_passed_as_objects_are_copied(kind, how, tiny, tokenizer):
    # Models that were once asked for hidden states or attentions keep the library's hooks, with
    # which nothing can be pickled. Other tests have asked the models of `tiny`.
    config = tiny_config(tokenizer, num_labels=2)
    classifier = AutoModelForSequenceClassification.from_config(config)
    reward_model = RewardModel(classifier, tokenizer)
    arguments = {**tiny, "reward_model": reward_model, "model": fresh(kind, tokenizer)}
    env = in_mid_episode(gym.make("ABC-RLHF-Features-v0", **arguments | {"min_new_tokens": 5}))
    assert_same_future(env, COPIES[how](env))


@pytest.mark.parametrize("how", COPIES)
def test_copies_and_original_do_not_disturb_each_other(how):
    """As in a tree search, that goes on from one state by different actions."""
    env = in_mid_episode(gym.make("ABC-RLHF-Features-v0"))
    plans = [[1, 2, 3, 0], [2, 3, 1, 0], [0, 0, 0, 0]]
    alone = [COPIES[how](env) for _ in plans]
    expected = [[one.step(a) for a in plan] for one, plan in zip(alone, plans, strict=True)]
    together = [env, COPIES[how](env), COPIES[how](env)]
    steps = [
        [one.step(plan[t]) for one, plan in zip(together, plans, strict=True)] for t in range(4)
    ]
    for t, row in enumerate(steps):
        for path, step in enumerate(row):
            assert data_equivalence(step, expected[path][t], exact=True)
    assert not data_equivalence(expected[0][3][0], expected[1][3][0])


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("render_mode", ["ansi", "human", "rgb_array"])
def test_environments_that_draw_go_on(render_mode, how):
    env = in_mid_episode(gym.make("ABC-RLHF-Planted-v0", render_mode=render_mode))
    theirs = COPIES[how](env)
    assert data_equivalence(env.render(), theirs.render(), exact=True)
    assert_same_future(env, theirs)


@pytest.mark.parametrize("how", ["cloudpickle", "deepcopy"])
def test_potentials_and_credit_of_ones_own_are_copied(how):
    """A function that is defined in a script cannot be pickled by name."""

    def length(prompt, completion):
        return 0.5 * len(completion)

    env = gym.make("ABC-RLHF-Planted-v0")
    env = in_mid_episode(wrappers.PotentialShaping(env, length))
    assert_same_future(env, COPIES[how](env))


def test_reading_leaves_nothing_on_the_language_model(tiny, tokenizer):
    """Asked for hidden states, transformers attaches functions that cannot be pickled."""
    model = fresh("qwen3", tokenizer)
    arguments = {**tiny, "min_new_tokens": 5, "model": model}
    in_mid_episode(gym.make("ABC-RLHF-Features-v0", **arguments))
    assert not any(part._forward_hooks for part in model.modules())
