"""Methods: ``reset``, ``step``, ``predict``, ``learn``, ``save``, and functions of the user's."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.bad_input.outcomes import (
    CLEAR,
    TALLY,
    outcome_of,
    refusals,
    refused,
)
from tests.bad_input.values import VALUES, hints_of, wrong_values
from textgym.agents import PPO, collect_episodes, load_agent
from textgym.agents.values import (
    fit_reference_value,
    monte_carlo_values,
    prefix_tree_values,
    score_function,
)
from textgym.credit import get_credit_assigner
from textgym.envs import TextGenerationVectorEnv
from textgym.models import load_language_model, load_reward_model, load_tokenizer
from textgym.prompts import load_prompts
from textgym.wrappers import CreditAssignment, PotentialShaping, TopKActions, vector


@pytest.fixture(scope="module")
def agent(language_model, envs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return PPO(
        language_model, envs, episodes_per_iteration=2, minibatch_size=2, log_dir=folder / "log"
    )


def but(*allowed, **more):
    """All strange values except some labels, and further ones."""
    return {name: value for name, value in VALUES.items() if name not in allowed} | more


# Environments


def calls(function, values, keyword=None):
    """A case for each value, as the only argument or as a keyword."""
    if keyword is None:
        return {label: partial(function, value) for label, value in values.items()}
    return {label: partial(function, **{keyword: value}) for label, value in values.items()}


def test_seeds_of_a_single_environment(env):
    accepted = {"True": "Gymnasium checks seeds of single environments, and takes True for 1"}
    refusals("reset and step", calls(env.reset, but("None"), "seed"), (), accepted)


def test_seeds_of_a_batch(envs):
    values = but("None", three=[1, 2, 3], fractions=[1.5, 2.0], words=["a", "b"], minus=[-1, 2])
    values |= {"a table": np.zeros((2, 2), int), "flags": [True, False], "one too few": [1]}
    refusals("reset and step", calls(envs.reset, values, "seed"), ["seed"])


@pytest.mark.parametrize("kind", ["env", "envs"])
def test_options_are_a_dict_of_known_names(kind, request):
    target = request.getfixturevalue(kind)
    misspelt = {"promt": "I", "Prompt": "I", "max_new_token": 3, "reset_maks": np.ones(2, bool)}
    values = but("None", "dict") | {name: {name: value} for name, value in misspelt.items()}
    if kind == "env":
        values["a mask"] = {"reset_mask": np.ones(1, bool)}
    refusals("reset and step", calls(target.reset, values, "options"), ["options"])


def test_a_misspelt_option_is_named_with_the_right_one(env, envs):
    for target in (env, envs):
        call = partial(target.reset, options={"promt": "I"})
        refused("reset and step", call, "promt", match="did you mean 'prompt'?")
    call = partial(envs.reset, options={"reset_maks": np.ones(2, bool)})
    refused("reset and step", call, "reset_maks", match="did you mean 'reset_mask'?")


@pytest.mark.parametrize("kind", ["env", "envs"])
def test_values_of_options(kind, request):
    target = request.getfixturevalue(kind)
    prompts = but("text", "digits", two=["I", "I"])
    budgets = but() | {"zero": 0, "too many": 1000}
    cases = {
        f"prompt {k}": partial(target.reset, options={"prompt": v}) for k, v in prompts.items()
    }
    cases |= {
        f"max_new_tokens {k}": partial(target.reset, options={"max_new_tokens": v})
        for k, v in budgets.items()
    }
    accepted = {"prompt empty text": "the tokenizer puts its start token in front: one token"}
    refusals("reset and step", cases, ["prompt", "max_new_tokens"], accepted)


def test_masks_of_rows_to_reset(envs):
    envs.reset(seed=0)
    values = but("None") | {
        "no row": np.zeros(2, bool),
        "numbers": np.ones(2),
        "three rows": np.ones(3, bool),
        "a list": [True, False],
        "a column": np.ones((2, 1), bool),
    }
    cases = {k: partial(envs.reset, options={"reset_mask": v}) for k, v in values.items()}
    refusals("reset and step", cases, ["reset_mask"])


@pytest.mark.parametrize("kind", ["env", "TopKActions"])
def test_actions_of_a_single_environment(kind, env, language_model):
    target = env if kind == "env" else TopKActions(env, 4, language_model)
    target.reset(seed=0)
    values = but() | {"too large": 10**6, "negative": -1, "array": np.array([1]), "float": 3.0}
    accepted = {"True": "Gymnasium's Discrete contains True, which is 1"}
    refusals("reset and step", calls(target.step, values), ["action"], accepted)


@pytest.mark.parametrize("kind", ["envs", "TopKActions"])
def test_actions_of_a_batch(kind, envs, language_model):
    target = envs if kind == "envs" else vector.TopKActions(envs, 4, language_model)
    target.reset(seed=0)
    values = but() | {
        "one": [1],
        "three": [1, 2, 3],
        "floats": [1.0, 2.0],
        "flags": [True, False],
        "texts": ["1", "2"],
        "a table": np.ones((2, 2), int),
        "ragged": [[1], [1, 2]],
        "too large": [1, 10**6],
        "negative": [1, -1],
        "nothing": [None, None],
    }
    refusals("reset and step", calls(target.step, values), ["actions"])


def test_a_step_without_a_reset_is_refused(tiny):
    for made in (gym.make("ABC-RLHF-v0", **tiny), TextGenerationVectorEnv(2, **tiny)):
        refused("reset and step", partial(made.step, 1), match="reset")


# Agents


def observation(envs):
    observations, _ = envs.reset(seed=0)
    return observations


def test_observations_of_predict(agent, envs):
    good = observation(envs)
    ids, mask = good["input_ids"], good["attention_mask"]
    values = but(missing={"input_ids": ids}, other={"attention_mask": mask})
    values |= {f"input_ids {k}": good | {"input_ids": v} for k, v in VALUES.items()}
    values |= {f"attention_mask {k}": good | {"attention_mask": v} for k, v in VALUES.items()}
    values |= {
        "other lengths": good | {"attention_mask": mask[:, :-1]},
        "three axes": {"input_ids": ids[None], "attention_mask": mask[None]},
        "fractions": good | {"input_ids": ids + 0.5},
        "floats": good | {"input_ids": ids.astype(float)},
        "unknown tokens": good | {"input_ids": ids + 100_000},
        "negative tokens": good | {"input_ids": ids - 1000},
        "no token": good | {"attention_mask": mask * 0},
        "two": good | {"attention_mask": mask * 2},
        "no row": {"input_ids": ids[:0], "attention_mask": mask[:0]},
    }
    names = ["observation", "input_ids", "attention_mask"]
    refusals("predict, learn, save", calls(agent.predict, values), names)


def test_action_masks_of_predict(agent, envs):
    good = observation(envs)
    size = envs.single_action_space.n
    values = but("None") | {
        "zeros": np.zeros((2, size)),
        "a row of zeros": np.eye(2, size) * [[1], [0]],
        "too few": np.ones((2, size - 1)),
        "too many": np.ones((2, size + 1)),
        "one row": np.ones(size),
        "three rows": np.ones((3, size)),
        "twos": np.full((2, size), 2),
        "NaN mask": np.full((2, size), np.nan),
        "texts": np.full((2, size), "yes"),
    }
    cases = {k: partial(agent.predict, good, action_masks=v) for k, v in values.items()}
    refusals("predict, learn, save", cases, ["action_masks"])


def test_a_legal_mask_is_obeyed(agent, envs):
    good = observation(envs)
    mask = np.zeros((2, envs.single_action_space.n), np.int8)
    mask[:, [7, 9]] = [[1, 0], [0, 1]]
    assert agent.predict(good, action_masks=mask)[0].tolist() == [7, 9]
    single = {name: values[0] for name, values in good.items()}
    assert agent.predict(single, action_masks=mask[1])[0] == 9


def test_any_observation_gives_a_token_or_a_clear_error(agent, envs):
    size = envs.single_action_space.n

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(
        arrays.arrays(
            st.sampled_from([np.int64, np.float32, np.int8]),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
            elements=st.integers(-2, 120),
        ),
        st.booleans(),
        st.integers(0, 2),
    )
    def try_one(ids, same_shape, cell):
        mask = np.full(ids.shape if same_shape else (2, 3), cell)
        tokens = []
        call = lambda: tokens.append(  # noqa: E731
            agent.predict({"input_ids": ids, "attention_mask": mask})[0]
        )
        outcome, error = outcome_of(call)
        TALLY["predict, learn, save", outcome] += not tokens
        assert tokens or outcome == CLEAR, (ids, mask, error)
        assert not tokens or ((tokens[0] >= 0) & (tokens[0] < size)).all()

    try_one()


def test_arguments_of_learn(agent):
    steps = but(zero=0, below=-5, half=2.5)
    cases = {f"total_timesteps {k}": partial(agent.learn, v) for k, v in steps.items()}
    cases |= {
        f"progress_bar {k}": partial(agent.learn, 1, progress_bar=v)
        for k, v in wrong_values(bool).items()
    }
    cases |= {
        f"callback {k}": partial(agent.learn, 1, callback=v)
        for k, v in but("None", "class").items()
    }
    cases["callback of nothing"] = partial(agent.learn, 1, callback=lambda: None)
    refusals("predict, learn, save", cases, ["total_timesteps", "progress_bar", "callback"])
    assert agent.num_timesteps == 0


def test_places_to_save(agent, tmp_path):
    (tmp_path / "file").touch()
    places = but("text", "digits") | {
        "a folder": tmp_path,
        "below a file": tmp_path / "file" / "checkpoint.pt",
        "a null": "a\0b",
    }
    refusals("predict, learn, save", calls(agent.save, places), ["path"])
    places = but("text", "digits") | {"a file": tmp_path / "file"}
    refusals("predict, learn, save", calls(agent.save_pretrained, places), ["folder"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_places_to_load_from(agent, tmp_path):
    (tmp_path / "empty").touch()
    places = but() | {"a folder": tmp_path, "empty": tmp_path / "empty", "none": tmp_path / "no"}
    refusals("predict, learn, save", calls(PPO.load, places), ["path"])
    refusals("predict, learn, save", calls(load_agent, places), ["path"])


# Functions of the user's


def broken(value):
    """Functions of one kind that return something else than numbers."""
    return {
        "NaN": lambda scored: torch.full(scored.input_ids.shape, torch.nan),
        "infinity": lambda scored: torch.full(scored.input_ids.shape, torch.inf),
        "one NaN": lambda scored: torch.zeros(scored.input_ids.shape).index_fill(
            1, torch.tensor([scored.input_ids.shape[1] - 1]), torch.nan
        ),
        "nothing": lambda scored: None,
        "a number": lambda scored: 1.0,
        "a list": lambda scored: [0.0],
        "one column": lambda scored: torch.zeros(len(scored.score), 1),
        "too few rows": lambda scored: torch.zeros(scored.input_ids[1:].shape),
    }[value]


def test_functions_that_take_something_else(tiny):
    def of_one_text(text):
        return 0.0

    def of_two(prompt, completion):
        return 0.0

    env = gym.make("ABC-RLHF-v0", **tiny)
    cases = {
        "a reward of one text": lambda: gym.make(
            "ABC-RLHF-v0", **tiny | {"reward_model": of_one_text}
        ),
        "a potential of one text": partial(PotentialShaping, env, of_one_text),
        "credit of two": partial(CreditAssignment, env, of_two),
    }
    refusals("functions", cases, ["reward_model", "potential", "credit"])


@pytest.mark.parametrize(
    "name",
    [
        "NaN",
        "infinity",
        "one NaN",
        "nothing",
        "a number",
        "a list",
        "one column",
        "too few rows",
    ],
)
def test_credit_functions_that_return_something_else(name, tiny):
    env = CreditAssignment(gym.make("ABC-RLHF-v0", **tiny), broken(name))
    envs = vector.CreditAssignment(TextGenerationVectorEnv(2, **tiny), broken(name))
    for one, action in ((env, 5), (envs, [5, 5])):
        one.reset(seed=0)

        def play(one=one, action=action):
            for _ in range(20):
                one.step(action)

        refused("functions", play, "credit")


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, None, "much", [1.0], torch.tensor([1.0, 2.0]), 1j], ids=str
)
def test_potentials_that_return_something_else(value, tiny):
    env = PotentialShaping(
        gym.make("ABC-RLHF-v0", **tiny), lambda prompt, completion: value, start="prompt"
    )

    def play():
        env.reset(seed=0)
        env.step(5)

    refused("functions", play, "potential")


@pytest.mark.parametrize(
    "value",
    [np.nan, np.inf, None, "much", [np.nan], [None], ["much"], [1.0, 2.0], [[1.0, 2.0]], 3.0],
    ids=str,
)
def test_reward_functions_that_return_something_else(value, tiny):
    env = gym.make("ABC-RLHF-v0", **tiny | {"reward_model": lambda prompts, completions: value})

    def play():
        env.reset(seed=0)
        for _ in range(20):
            env.step(5)

    refused("functions", play, "reward_model")


def test_a_credit_assigner_keeps_its_own_arguments():
    made = get_credit_assigner("abc")
    refused("functions", partial(get_credit_assigner, made, beta=0.5), "beta", match="already")


# Public functions


def test_arguments_of_public_functions(
    tokenizer, language_model, reward_model, envs, agent, tmp_path
):
    generator = torch.Generator().manual_seed(0)
    rollout = collect_episodes(agent.policy, envs, 2, generator)
    for name in ("num_episodes", "group_size"):
        given = {"policy": agent.policy, "env": envs, "num_episodes": 2, "generator": generator}
        cases = {
            label: partial(collect_episodes, **given | {name: value})
            for label, value in wrong_values(int).items()
        }
        refusals("functions", cases, [name])
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
    table = [
        (load_tokenizer, {"tokenizer": tokenizer}, ()),
        (load_language_model, {"model": language_model}, ()),
        (load_reward_model, {"reward_model": reward_model}, ("tokenizer",)),
        (load_prompts, {"prompts": "embedded", "tokenizer": tokenizer}, ("tokenizer", "column")),
    ]
    for function, given_values, left_out in table:
        for name, hint in hints_of(function).items():
            if name in left_out:
                continue
            shown = "prompt_column" if name == "column" else name
            accepted = {"list of a text": "a list of one prompt"} if name == "prompts" else {}
            cases = {
                label: partial(function, **given_values | {name: value})
                for label, value in (VALUES if name == "prompts" else wrong_values(hint)).items()
            }
            refusals("functions", cases, [shown], accepted)
    numbers = {
        "num_episodes": (partial(fit_reference_value, agent.policy, envs), "num_episodes"),
        "ridge": (partial(fit_reference_value, agent.policy, envs, 2), "ridge"),
        "seed": (partial(fit_reference_value, agent.policy, envs, 2), "seed"),
        "num_continuations": (
            partial(
                monte_carlo_values, agent.policy, rollout, score_function(envs), generator=generator
            ),
            "num_continuations",
        ),
        "group_size": (partial(prefix_tree_values, ids, mask, torch.zeros(2)), "group_size"),
    }
    for name, (function, keyword) in numbers.items():
        values = but("fraction") if name == "ridge" else but()
        cases = {label: partial(function, **{keyword: v}) for label, v in values.items()}
        refusals("functions", cases, [name])
