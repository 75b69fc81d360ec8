"""The arguments are declared once, and every constructor shows them."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import KW_ONLY, FrozenInstanceError, dataclass
from typing import Annotated

import gymnasium as gym
import numpy as np
import pytest

import textgym  # noqa: F401
from textgym.envs import (
    PlantedEnv,
    PlantedVectorEnv,
    TextGenerationArguments,
    TextGenerationEnv,
    TextGenerationVectorEnv,
)
from textgym.envs.arguments import document_arguments, init_takes, keywords_for
from textgym.errors import InvalidArgumentError
from textgym.planted import PROMPTS
from textgym.wrappers.presets import make_features_env, make_features_vector_env

SINGLE = [TextGenerationEnv, PlantedEnv, make_features_env]
BATCHED = [TextGenerationVectorEnv, PlantedVectorEnv, make_features_vector_env]
KEYWORDS = {
    "tokenizer",
    "reward_model",
    "prompts",
    "prompt_column",
    "min_new_tokens",
    "max_new_tokens",
    "normalize_score",
    "device",
    "dtype",
    "action_mask_in_info",
    "render_mode",
}


def parameters(target):
    return inspect.signature(target).parameters


def defaults(target):
    return {name: one.default for name, one in parameters(target).items()}


@pytest.mark.parametrize("target", SINGLE + BATCHED, ids=lambda one: one.__name__)
def test_every_constructor_shows_the_same_keywords(target):
    own = {"model", "k", "describe_actions", "dense"} if "features" in target.__name__ else set()
    batched = {"num_envs", "autoreset_mode"} if target in BATCHED else set()
    assert set(parameters(target)) == KEYWORDS | own | batched


@pytest.mark.parametrize("target", SINGLE + BATCHED, ids=lambda one: one.__name__)
def test_help_gives_every_keyword_a_type_a_default_and_a_meaning(target):
    text = inspect.getdoc(target)
    for name, one in parameters(target).items():
        assert one.default is not inspect.Parameter.empty
        assert not isinstance(one.annotation, str)  # a type, not its source text
        (entry,) = [line for line in text.splitlines() if line.startswith(f"    {name}: ")]
        assert len(entry.strip()) > len(name) + 20
    assert "The fields of" not in text
    assert "Default: `16`" in text or "Default: `8`" in text


def test_defaults_differ_where_they_should():
    text, planted = defaults(TextGenerationEnv), defaults(PlantedEnv)
    assert (text["tokenizer"], text["min_new_tokens"], text["max_new_tokens"]) == (
        "embedded",
        8,
        16,
    )
    changed = {name for name in text if text[name] != planted[name]}
    assert changed == {"tokenizer", "reward_model", "prompts", "max_new_tokens"}
    assert planted["prompts"] == PROMPTS
    for single, batched in zip(SINGLE, BATCHED, strict=True):
        shared = {name: defaults(batched)[name] for name in defaults(single)}
        assert shared == defaults(single)


def test_the_first_arguments_are_positional_and_the_others_are_not(tiny):
    first = [tiny["tokenizer"], tiny["reward_model"], ["This film"]]
    env = TextGenerationEnv(*first, min_new_tokens=2, max_new_tokens=3)
    assert env.reset(seed=0)[1]["token_budget"] in (2, 3)
    envs = TextGenerationVectorEnv(2, *first, max_new_tokens=9)
    assert (envs.num_envs, envs.max_new_tokens) == (2, 9)
    with pytest.raises(TypeError, match="positional"):
        TextGenerationEnv(*first, None)


@pytest.mark.parametrize("target", SINGLE + BATCHED, ids=lambda one: one.__name__)
def test_an_unknown_keyword_is_refused_with_the_one_that_was_meant(target):
    with pytest.raises(InvalidArgumentError, match=r"max_new_token=3: .*'max_new_tokens'\?"):
        target(max_new_token=3)
    with pytest.raises(InvalidArgumentError, match=r"reward_funcs=.*'reward_model'\?"):
        target(reward_funcs=[])
    with pytest.raises(InvalidArgumentError, match=r"zzz=1: .*; choose from .*prompt_column"):
        target(zzz=1)


def test_gymnasium_passes_keywords_and_names_unknown_ones(tiny):
    env = gym.make("ABC-RLHF-v0", **tiny, normalize_score=False)
    assert env.unwrapped.max_new_tokens == tiny["max_new_tokens"]
    assert gym.make(env.spec).unwrapped.max_new_tokens == tiny["max_new_tokens"]
    for make in (gym.make, gym.make_vec):
        with pytest.raises(InvalidArgumentError, match="did you mean 'prompts'"):
            make("ABC-RLHF-v0", prompt=["This film"])


def test_arguments_are_frozen_and_can_be_pickled():
    arguments = TextGenerationArguments(max_new_tokens=20)
    assert pickle.loads(pickle.dumps(arguments)) == arguments
    with pytest.raises(FrozenInstanceError):
        arguments.max_new_tokens = 3


@dataclass(frozen=True)
class HaikuArguments(TextGenerationArguments):
    _: KW_ONLY
    max_new_tokens: int = 9
    num_lines: Annotated[int, "Lines of a haiku."] = 3


@document_arguments
class HaikuEnv(TextGenerationEnv):
    """Write a haiku.

    Args:
        arguments: The fields of :class:`HaikuArguments`.
    """

    @init_takes(HaikuArguments)
    def __init__(self, arguments):
        super().__init__(**keywords_for(TextGenerationArguments, arguments))
        self.num_lines = arguments.num_lines


def test_an_environment_of_ones_own_adds_an_argument_in_one_line(tiny):
    env = HaikuEnv(**{**tiny, "max_new_tokens": 5}, num_lines=2)
    assert (env.num_lines, env.max_new_tokens) == (2, 5)
    assert set(parameters(HaikuEnv)) == KEYWORDS | {"num_lines"}
    lines = inspect.getdoc(HaikuEnv).splitlines()
    assert "    num_lines: Lines of a haiku. Default: `3`." in lines
    assert "    max_new_tokens: Largest token budget. Default: `9`." in lines
    assert np.isfinite(env.reset(seed=0)[0]["input_ids"]).all()
    with pytest.raises(InvalidArgumentError, match=r"HaikuEnv has no .*'num_lines'"):
        HaikuEnv(num_line=2)
