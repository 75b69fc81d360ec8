"""Models that are spread over devices or a disk are refused where they would fail later."""

from __future__ import annotations

import copy

import gymnasium as gym
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.errors import InvalidArgumentError
from textgym.models import RewardModel, load_language_model

ON_DISK = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}


def test_a_model_with_one_device_in_its_map_is_like_any_other(language_model, tiny, tmp_path):
    model = copy.deepcopy(language_model)
    model.hf_device_map = {"": "cpu"}
    env = gym.make("ABC-RLHF-v0", **tiny)
    PPO(model, env, episodes_per_iteration=4, log_dir=tmp_path).learn(1)


@pytest.mark.parametrize("name", ["language model", "reward model"])
def test_offloaded_weights_are_refused(name, language_model, classifier, tokenizer, tmp_path):
    pytest.importorskip("accelerate")
    is_policy = name == "language model"
    auto = AutoModelForCausalLM if is_policy else AutoModelForSequenceClassification
    (language_model if is_policy else classifier).save_pretrained(tmp_path)
    device_map = {**ON_DISK, ("lm_head" if is_policy else "score"): "cpu"}
    model = auto.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    with pytest.raises(InvalidArgumentError, match=r"on cpu and disk.*must be on one device"):
        load_language_model(model) if is_policy else RewardModel(model, tokenizer)


def test_a_policy_on_several_devices_is_refused(language_model, tiny, tmp_path):
    model = copy.deepcopy(language_model)
    model.hf_device_map = {"model": "cuda:0", "lm_head": "cuda:1"}
    env = gym.make("ABC-RLHF-v0", **tiny)
    with pytest.raises(InvalidArgumentError, match=r"^policy=.*cuda:0 and cuda:1"):
        PPO(model, env, episodes_per_iteration=4, log_dir=tmp_path)
