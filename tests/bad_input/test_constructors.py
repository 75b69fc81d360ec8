"""Every argument of every public constructor refuses what its annotation does not allow.

The table is made from the signatures: a new argument or class is tried without a line here.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import textgym.wrappers
import textgym.wrappers.vector
from tests.bad_input.outcomes import CLEAR, SILENT, TALLY, outcome_of, refusals, refused
from tests.bad_input.values import hints_of, wrong_values
from textgym import agents, benchmark, credit, models, prompts, reward_training
from textgym import envs as environments
from textgym.agents import sb3, values
from textgym.models import bridge
from textgym.wrappers import presets

ROOMS = {
    "envs": environments,
    "wrappers": textgym.wrappers,
    "wrappers.vector": textgym.wrappers.vector,
    "credit": credit,
    "models": models,
    "bridge": bridge,
    "prompts": prompts,
    "agents": agents,
    "values": values,
    "sb3": sb3,
    "benchmark": benchmark,
    "reward_training": reward_training,
}
PUBLIC = {
    f"{room}.{name}": one
    for room, module in ROOMS.items()
    for name in module.__all__
    if inspect.isclass(one := getattr(module, name))
} | {
    "presets.make_features_env": presets.make_features_env,
    "presets.make_features_vector_env": presets.make_features_vector_env,
}

RESULT = "textgym makes it, and users read it"
ABSTRACT = "users derive from it; its subclasses are here"
NOT_TRIED = {
    "envs.LastStep": RESULT,
    "envs.TextEnvironment": ABSTRACT,
    "envs.TextGenerationArguments": "a record; the environments that take it check it",
    "envs.VectorArguments": "a record; the environments that take it check it",
    "credit.CreditAssigner": ABSTRACT,
    "credit.HindsightCredit": ABSTRACT,
    "credit.WeightedCredit": ABSTRACT,
    "credit.Potential": ABSTRACT,
    "models.Completions": RESULT,
    "models.LeftAligned": RESULT,
    "models.NextToken": RESULT,
    "models.ScoredCompletions": RESULT,
    "models.Scorer": ABSTRACT,
    "models.GradientScorer": ABSTRACT,
    "bridge.TextCompletions": RESULT,
    "bridge.TokenText": RESULT,
    "prompts.PromptSource": ABSTRACT,
    "agents.Agent": ABSTRACT,
    "agents.Critic": ABSTRACT,
    "agents.KLController": ABSTRACT,
    "agents.ActionRules": RESULT,
    "agents.LanguageModelPolicy": "the agents make it, of arguments that they have checked",
    "agents.Processes": "the agents make it, of what the launcher says",
    "agents.Rollout": RESULT,
    "agents.Sampler": ABSTRACT,
    "agents.SampledCompletion": "a record of a sampler; the agent checks it before it is played",
    "agents.SamplingRequest": RESULT,
    "sb3.HindsightDictReplayBuffer": "Stable-Baselines3 makes it, from its own arguments",
    "sb3.HindsightReplayBuffer": "Stable-Baselines3 makes it, from its own arguments",
    "sb3.LanguageModelPolicy": "Stable-Baselines3 makes it; its own arguments are tried below",
    "sb3.WholeTextDictRolloutBuffer": "Stable-Baselines3 makes it, from its own arguments",
    "benchmark.Method": "a plan; tests/benchmarks/test_suites.py has its wrong values",
    "benchmark.Suite": "a plan; tests/benchmarks/test_suites.py has its wrong values",
    "benchmark.Task": "a plan; tests/benchmarks/test_suites.py has its wrong values",
    "reward_training.Labelled": "a record; load_examples, which makes it, checks the data",
    "reward_training.Pair": "a record; load_examples, which makes it, checks the data",
    "values.MonteCarloValues": RESULT,
    "values.ReferenceFit": RESULT,
}
"""Public classes that are not tried, and why."""

SHAPING = ("AttentionShaping", "PotentialShaping", "ShapingCredit", "PrefixScoreCredit")
ANY_TEXT = "any text may stand around prompt and completion"
A_FOLDER = "the name of a folder that will be made"
ACCEPTED = {
    "after": {"text": ANY_TEXT, "empty text": ANY_TEXT, "digits": ANY_TEXT, "long text": ANY_TEXT},
    "coef": {"minus one": "a negative term pushes away from the reference model"},
    "layers": {"minus one": "-1 is the last layer"},
    "log_dir": {"text": A_FOLDER, "digits": A_FOLDER},
    "lora": {
        "dict": "adapters without arguments of their own: the defaults of peft",
        "True": "adapters with the defaults of peft",
    },
    "potential": {"None": "the attention-weighted prefix score, as get_potential says"},
    "prompts": {"list of a text": "a list of one prompt"},
    "readouts": {"list": "no read-out is needed", "dict": "no read-out is needed"},
    "tokenizer": {"None": "RewardModel reads token ids, and needs no tokenizer for that"},
}
"""Values that are right to accept although the annotation does not say so, by parameter."""
ACCEPTED["before"] = ACCEPTED["between"] = ACCEPTED["after"]


def accepted(name, parameter):
    if parameter == "beta" and name.rpartition(".")[2] in SHAPING:
        return {"minus one": "shaping by any factor leaves the optimum alone"}
    if parameter == "tokenizer" and name != "models.RewardModel":
        return {}
    return ACCEPTED.get(parameter, {})


def parameters():
    for name, target in PUBLIC.items():
        if name not in NOT_TRIED:
            for parameter, hint in hints_of(target).items():
                yield pytest.param(name, parameter, hint, id=f"{name}-{parameter}")


@pytest.fixture(scope="module")
def valid(tiny, env, envs, language_model, reward_model, classifier, tokenizer):
    """Arguments that a constructor cannot do without, or that make it fast, by its name."""

    def arguments(name, target):
        has = inspect.signature(target).parameters
        room = name.rpartition(".")[0]
        given = {}
        if room in ("envs", "presets"):
            given = dict(tiny)
            if "Planted" in name:
                given = {}
            if "features" in name:
                given |= {"model": language_model, "k": 4}
        if "env" in has and room == "sb3":
            given["env"] = envs
        elif "env" in has:
            given["env"] = envs if room == "wrappers.vector" else env
        others = {
            "policy": language_model,
            "potential": "prefix-score",
            "model": classifier if name == "models.RewardModel" else language_model,
            "coef": 0.1,
            "function": lambda *args, **kwargs: 0.0,
            "tokenizer": tokenizer,
            "reward_model": reward_model,
            "readouts": (),
            "prompt_ids": [[1, 2]],
            "document_ids": [list(range(1, 20))],
            "coefficients": [[0.0, 0.0, 0.0]],
            "num_actions": 3,
            "num_continuations": 2,
        }
        for key, value in others.items():
            if (
                key in has
                and key not in given
                and (has[key].default is inspect.Parameter.empty or key == "model")
            ):
                given[key] = value
        return given

    return arguments


@pytest.mark.parametrize(("name", "parameter", "hint"), parameters())
def test_a_wrong_value_is_refused(name, parameter, hint, valid):
    target = PUBLIC[name]
    given = valid(name, target)
    cases = {
        label: partial(target, **given | {parameter: value})
        for label, value in wrong_values(hint).items()
    }
    refusals("constructors", cases, [parameter], accepted(name, parameter))


def test_only_public_classes_are_left_out_for_a_reason():
    assert NOT_TRIED.keys() <= PUBLIC.keys()
    assert all(len(reason) > 10 for reason in NOT_TRIED.values())


def test_arguments_of_the_policy_for_stable_baselines3(envs):
    spaces = (envs.single_observation_space, envs.single_action_space, lambda _: 1e-3)
    for parameter, hint in {"model": str | Path | PreTrainedModel, "temperature": float}.items():
        cases = {
            label: partial(sb3.LanguageModelPolicy, *spaces, **{parameter: value})
            for label, value in wrong_values(hint).items()
        }
        refusals("constructors", cases, [parameter])


def misspelt(name):
    """A name with its last letter twice."""
    return name + name[-1]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.startswith(("envs.", "presets"))])
def test_a_misspelt_argument_of_an_environment_is_refused_with_the_right_one(name):
    target = PUBLIC[name]
    if name not in NOT_TRIED:
        for parameter in inspect.signature(target).parameters:
            wrong = misspelt(parameter)
            call = partial(target, **{wrong: 1})
            refused("misspelt arguments", call, wrong, match=f"did you mean {parameter!r}?")


@pytest.mark.parametrize("config", [agents.PPOConfig, agents.RLOOConfig, agents.GRPOConfig])
def test_a_misspelt_hyperparameter_is_refused_with_the_right_one(config):
    for field in dataclasses.fields(config):
        wrong = misspelt(field.name)
        call = partial(config.from_keywords, **{wrong: 1})
        assert field.name in refused("misspelt arguments", call, wrong, match="did you mean")


@pytest.mark.parametrize("name", sorted(credit.CREDIT_ASSIGNERS))
def test_a_misspelt_credit_or_argument_of_it_is_refused_with_the_right_one(name, language_model):
    has = inspect.signature(credit.find_credit_assigner(name)).parameters
    call = partial(credit.get_credit_assigner, misspelt(name))
    refused("misspelt arguments", call, "credit", match=f"did you mean {name!r}?")
    given = {"policy": language_model} if "policy" in has else {}
    for parameter in has:
        wrong = misspelt(parameter)
        call = partial(credit.get_credit_assigner, name, **given, **{wrong: 1})
        refused("misspelt arguments", call, wrong, match=f"did you mean {parameter!r}?")


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.sampled_from([np.float32(0.5), np.int64(3), np.nan, "0.5", "1", b"1", 10**400, -0.0]),
)


@pytest.mark.parametrize("config", [agents.PPOConfig, agents.RLOOConfig, agents.GRPOConfig])
def test_any_value_of_a_hyperparameter_is_kept_or_refused_by_name(config):
    """Whatever is not refused is what the agent will use.

    The error may name the size of minibatches or groups, which must fit the number of episodes.
    """
    names = sorted({one.name for one in dataclasses.fields(config)} - {"lora", "log_dir", "device"})

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(names), ANYTHING)
    def try_one(name, value):
        made = []
        outcome, error = outcome_of(
            lambda: made.append(config(**{name: value})), [name, "minibatch_size", "group_size"]
        )
        TALLY["hyperparameters", SILENT if made else outcome] += not made
        assert made or outcome == CLEAR, (name, value, error)
        assert not made or getattr(made[0], name) == value

    try_one()
