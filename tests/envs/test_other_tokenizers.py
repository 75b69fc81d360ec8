"""Environments whose reward model has a tokenizer of its own, or is a function."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from transformers import BertConfig, BertForSequenceClassification

import textgym  # noqa: F401
from tests.conftest import make_tokenizer
from tests.tokenizer_families import word_piece
from textgym.agents import PPO
from textgym.credit import OcclusionCredit
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionRow, RewardFunction, RewardModel, TextRewardModel
from textgym.wrappers import AttentionShaping, PotentialShaping
from textgym.wrappers.vector import CreditAssignment
from textgym.wrappers.vector import PotentialShaping as VectorPotentialShaping

make_functions = pytest.mark.parametrize("make", [gym.make, gym.make_vec])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(5)
    tokenizer = word_piece()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )
    return RewardModel(BertForSequenceClassification(config), tokenizer)


@pytest.fixture
def arguments(tiny, encoder):
    return {**tiny, "reward_model": encoder}


def play(env, seed=0):
    """A random episode; its rewards and its last info."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rewards.append(reward)
        over = terminated or truncated
    return rewards, info


def score_of(encoder, text):
    inputs = encoder.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = encoder.model(**inputs).logits[0]
    return (logits[1] - logits[0]).item()


# --- A reward model with another tokenizer


def test_the_score_is_that_of_the_text(arguments, encoder):
    env = gym.make("ABC-RLHF-v0", **arguments)
    rewards, info = play(env)
    expected = score_of(encoder, info["prompt"] + info["completion"])
    assert info["score"] == pytest.approx(expected, abs=1e-4)
    assert sum(rewards) == pytest.approx(expected, abs=1e-4)


def test_the_environment_passes_gymnasiums_checks(arguments):
    check_env(gym.make("ABC-RLHF-v0", **arguments).unwrapped, skip_render_check=True)


@make_functions
def test_the_default_reward_model_reads_any_policys_text(make):
    other = make_tokenizer(["quite other words", "give quite other tokens"], vocab_size=300)
    env = make("ABC-RLHF-v0", tokenizer=other, prompts=["This film"])
    assert isinstance(env.unwrapped.reward_model, TextRewardModel)


@make_functions
def test_with_the_same_vocabulary_tokens_pass_straight_through(make, tiny):
    env = make("ABC-RLHF-v0", **tiny)
    assert env.unwrapped.reward_model is tiny["reward_model"]


@make_functions
def test_a_classifier_of_another_vocabulary_is_refused_at_construction(make, classifier):
    """It has 340 embeddings, and the embedded tokenizer 4,096 tokens."""
    with pytest.raises(InvalidArgumentError, match=re.escape("pass RewardModel(model, tokenizer)")):
        make("ABC-RLHF-v0", reward_model=classifier, prompts=["This film"])


def test_prefix_score_shaping_pays_the_difference_of_the_texts_scores(arguments, encoder):
    env = PotentialShaping(gym.make("ABC-RLHF-v0", **arguments), "prefix-score")
    rewards, info = play(env, seed=3)
    assert sum(rewards) == pytest.approx(info["score"], abs=1e-4)
    first = env.unwrapped.completions
    ids = first.input_ids[0][first.attention_mask[0]]
    length = int(first.completion_mask.sum())
    texts = [
        env.unwrapped.tokenizer.decode(ids[: len(ids) - length + n], skip_special_tokens=True)
        for n in range(length)
    ]
    scores = [score_of(encoder, text) for text in texts]
    assert rewards[:-1] == pytest.approx(np.diff(scores).tolist(), abs=1e-3)


def test_single_and_batched_environments_pay_the_same(arguments):
    single = PotentialShaping(gym.make("ABC-RLHF-v0", **arguments), "prefix-score")
    batched = VectorPotentialShaping(
        gym.make_vec("ABC-RLHF-v0", num_envs=2, **arguments), "prefix-score"
    )
    single.reset(seed=7)
    batched.reset(seed=[7, 8])
    for action in (40, 60, 80):
        _, reward, terminated, _, _ = single.step(action)
        _, rewards, *_ = batched.step(np.array([action, 50]))
        assert rewards[0] == pytest.approx(reward, abs=1e-4)
        if terminated:
            break


def test_attention_weighted_shaping_says_why_not(arguments):
    with pytest.raises(InvalidArgumentError, match="another tokenizer"):
        AttentionShaping(gym.make("ABC-RLHF-v0", **arguments))


def test_ppo_learns_from_credit_through_another_tokenizer(arguments, language_model, tmp_path):
    envs = CreditAssignment(
        gym.make_vec("ABC-RLHF-v0", num_envs=4, autoreset_mode="Disabled", **arguments), "abc"
    )
    agent = PPO(language_model, envs, episodes_per_iteration=4, log_dir=tmp_path, seed=0)
    agent.learn(40)
    assert np.isfinite(agent.history[-1]["rollout/score_mean"])


# --- Conversations

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "This film?"},
]


@pytest.fixture
def chat(tiny):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    return {**tiny, "tokenizer": tokenizer, "prompts": [TALK]}


def test_a_conversation_is_put_into_the_chat_template(chat):
    env = gym.make("ABC-RLHF-v0", **chat)
    observation, _ = env.reset(seed=0)
    ids = observation["input_ids"][observation["attention_mask"] == 1]
    text = "<system> Be kind.</s><user> This film?</s><assistant> "
    assert chat["tokenizer"].decode(ids) == text


def test_rewards_that_read_text_see_what_is_said(chat, encoder):
    seen = []

    def listen(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    play(gym.make("ABC-RLHF-v0", **{**chat, "reward_model": listen}))
    assert seen == ["This film?"]
    encoder = RewardModel(encoder.model, encoder.tokenizer, template="Q: {prompt} A: {completion}")
    _, info = play(gym.make("ABC-RLHF-v0", **{**chat, "reward_model": encoder}))
    expected = score_of(encoder, f"Q: This film? A: {info['completion']}")
    assert info["score"] == pytest.approx(expected, abs=1e-4)


def test_attention_to_what_is_said_is_not_credit_of_the_completion(chat, encoder):
    env = gym.make("ABC-RLHF-v0", **{**chat, "reward_model": encoder})
    play(env)
    task = env.unwrapped
    scored = task.reward_model.read(task.completions, [AttentionRow()])
    row = scored[AttentionRow()]
    assert row[scored.prompt_mask].sum() == 0
    whole = row.sum() + scored.outside(scored.source[AttentionRow()])
    assert whole.item() == pytest.approx(1.0, abs=1e-5)
    assert row[scored.completion_mask].sum() > 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([TALK[:1]], "the last message must be the user's"),
        ([TALK, "text"], "conversations"),
    ],
)
def test_other_conversations_are_refused(prompts, message, chat):
    with pytest.raises(InvalidArgumentError, match=message):
        gym.make("ABC-RLHF-v0", **{**chat, "prompts": prompts})


def test_a_tokenizer_without_a_chat_template_is_refused(tiny):
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        gym.make("ABC-RLHF-v0", **{**tiny, "prompts": [TALK]})


# --- A function


def shouts(prompts, completions, **unused):
    """A rule in the form of TRL's reward functions."""
    return [
        completion.count("e") - 0.5 * len(prompt)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def test_a_function_of_text_is_a_reward(tiny):
    env = gym.make("ABC-RLHF-v0", **{**tiny, "reward_model": shouts})
    assert isinstance(env.unwrapped.reward_model, RewardFunction)
    rewards, info = play(env)
    expected = info["completion"].count("e") - 0.5 * len(info["prompt"])
    assert info["score"] == sum(rewards) == expected


def test_occlusion_is_exact_for_a_sum_over_characters(tiny):
    envs = CreditAssignment(
        gym.make_vec("ABC-RLHF-v0", num_envs=3, **{**tiny, "reward_model": shouts}),
        OcclusionCredit(beta=1.0),
    )
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(9):
        *_, infos = envs.step(envs.action_space.sample())
        if "credit" in infos and infos["_credit"].any():
            break
    (row,) = np.flatnonzero(infos["_credit"])[:1]
    credit = infos["credit"][row][: infos["completion_tokens"][row]]
    assert credit.sum() == pytest.approx(infos["score"][row])
    assert set(np.round(credit[:-1], 4)) <= {0.0, 1.0, 2.0}


def test_shaping_by_a_function_sums_to_its_score(tiny):
    env = gym.make("ABC-RLHF-v0", **{**tiny, "reward_model": shouts})
    rewards, info = play(PotentialShaping(env, "prefix-score"))
    assert sum(rewards) == pytest.approx(info["score"])


def test_attention_is_refused_with_the_reason(tiny):
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=2, **{**tiny, "reward_model": shouts})
    with pytest.raises(InvalidArgumentError, match="AttentionRow needs a model"):
        CreditAssignment(envs, "abc")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, completions: [float("nan")], "it returned nan for the prompt"),
        (lambda prompts, completions: [], "0 scores for 1 texts"),
        (lambda prompts, completions: ["good"], "returns a number for each"),
        (lambda prompts, **others: 0.0, "takes prompts= and completions="),
    ],
)
def test_what_a_function_returns_is_checked(function, message, tiny):
    env = gym.make("ABC-RLHF-v0", **{**tiny, "reward_model": function})
    with pytest.raises(InvalidArgumentError, match=message):
        play(env)


def test_an_object_with_the_method_read_is_a_reward(tiny):
    class Length:
        def read(self, completions, readouts=()):
            return completions.with_score(completions.completion_mask.sum(1))

    rewards, info = play(gym.make("ABC-RLHF-v0", **{**tiny, "reward_model": Length()}))
    assert sum(rewards) == info["completion_tokens"] == len(rewards)


def test_something_else_is_refused(tiny):
    with pytest.raises(InvalidArgumentError, match="function of prompts and completions"):
        gym.make("ABC-RLHF-v0", **{**tiny, "reward_model": 3})
