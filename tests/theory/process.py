"""A decision process of a few words, small enough to list every completion.

The environment, the wrappers, the reward model, the assigners and the potentials are real. The
policies are tables of logits. All results are exact, up to the float32 scores.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

import textgym  # noqa: F401
from textgym.credit import CREDIT_ASSIGNERS
from textgym.exact import Trajectories, policy_gradient, returns_to_go
from textgym.models import Completions, RewardModel
from textgym.wrappers import AttentionShaping, CreditAssignment, vector

WORDS = ["film", "good", "not"]
PROMPTS = ["film", "not good film"]
HORIZON = 4
MIN_NEW_TOKENS = 2  # EOS is legal from the third token on, so completions have 3 or 4 tokens


def make_tokenizer():
    """Three words and EOS, which is also the padding token."""
    vocabulary = {token: number for number, token in enumerate([*WORDS, "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", model_max_length=16
    )


def tiny_config(tokenizer, **changes):
    """Two layers, with weights large enough for scores and attention to differ between texts."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 16,
        "initializer_range": 0.4,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return Qwen3Config(**{**sizes, **changes})


def make_reward_model(tokenizer, seed=2, score_mean=0.0):
    """A random reward model; ``score_mean`` shifts its scores."""
    torch.manual_seed(seed)
    config = tiny_config(tokenizer, num_labels=1, score_mean=score_mean)
    return RewardModel(Qwen3ForSequenceClassification(config), tokenizer)


def make_policy(tokenizer, seed=3):
    """A random causal language model, for the methods that use the policy's attention."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(tiny_config(tokenizer)).eval()


@dataclass(frozen=True)
class Process:
    """All finished completions of all prompts.

    Attributes:
        reward_model: The reward model that scores them.
        prompt_ids: Token ids of the prompt of each trajectory.
        completion_ids: Token ids of each trajectory.
        starts: Number of each trajectory's prompt, shape (num_trajectories,).
        trajectories: The same completions as arrays, shape (num_trajectories, HORIZON).
    """

    reward_model: RewardModel
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    starts: np.ndarray
    trajectories: Trajectories

    @property
    def mask(self):
        """True at the steps of each trajectory, shape (num_trajectories, HORIZON)."""
        return self.trajectories.mask

    @property
    def completions(self):
        """All completions in one batch."""
        return Completions.from_lists(self.prompt_ids, self.completion_ids)

    def read(self, readouts=()):
        """All completions, scored in one forward pass."""
        return self.reward_model.read(self.completions, readouts)

    def rewards(self, assigner):
        """Credit of an assigner per step, float64, shape (num_trajectories, HORIZON)."""
        scored = self.read(assigner.readouts)
        return per_step(assigner(scored), scored.completion_mask)

    def make_env(self, **changes):
        """The environment whose completions are listed."""
        return gym.make("ABC-RLHF-v0", **self._arguments(), **changes)

    def make_envs(self):
        """Its vector form with one row per trajectory, for :func:`walk`."""
        return gym.make_vec(
            "ABC-RLHF-v0",
            num_envs=len(self.starts),
            autoreset_mode=AutoresetMode.DISABLED,
            **self._arguments(),
        )

    def _arguments(self):
        return {
            "tokenizer": self.reward_model.tokenizer,
            "reward_model": self.reward_model,
            "prompts": PROMPTS,
            "min_new_tokens": MIN_NEW_TOKENS,
            "max_new_tokens": HORIZON,
        }


def list_completions(eos, num_tokens):
    """Token ids of every completion that the environment allows."""
    unfinished, finished = [[]], []
    for length in range(HORIZON):
        legal = [token for token in range(num_tokens) if token != eos or length >= MIN_NEW_TOKENS]
        grown = [[*text, token] for text in unfinished for token in legal]
        is_over = [text[-1] == eos or len(text) == HORIZON for text in grown]
        finished += [text for text, over in zip(grown, is_over, strict=True) if over]
        unfinished = [text for text, over in zip(grown, is_over, strict=True) if not over]
    return finished


def make_process(reward_model):
    """List every completion of every prompt."""
    tokenizer = reward_model.tokenizer
    texts = list_completions(tokenizer.eos_token_id, len(tokenizer))
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    starts = np.repeat(np.arange(len(prompts)), len(texts))
    completion_ids = texts * len(prompts)
    return Process(
        reward_model,
        [prompts[start] for start in starts],
        completion_ids,
        starts,
        Trajectories.of_texts(completion_ids, starts, len(tokenizer)),
    )


def per_step(values, completion_mask):
    """From (batch, num_tokens) to float64 of shape (batch, HORIZON), prompts left out."""
    result = np.zeros((len(values), HORIZON))
    steps = np.arange(HORIZON) < completion_mask.sum(1, keepdim=True).numpy()
    result[steps] = values[completion_mask].numpy()
    return result


def walk(process, envs):
    """Take every completion through a vector environment of :meth:`Process.make_envs`.

    Returns:
        The rewards that ``step`` paid, float64, shape (num_trajectories, HORIZON), and the final
        info of each trajectory, as a list of dicts.
    """
    envs.reset(seed=0)
    envs.step(process.trajectories.actions[:, 0])  # An abandoned episode must leave nothing behind.
    for number, prompt in enumerate(PROMPTS):
        options = {"prompt": prompt, "max_new_tokens": HORIZON}
        envs.reset(options={**options, "reset_mask": process.starts == number})
    rewards = np.zeros(process.mask.shape)
    finals = [{} for _ in process.starts]
    for step, actions in enumerate(process.trajectories.actions.T):
        _, rewards[:, step], terminated, truncated, infos = envs.step(actions)
        is_over = process.mask.sum(1) <= step + 1
        assert (terminated == is_over).all()
        assert not truncated.any()
        for row in np.flatnonzero(is_over & process.mask[:, step]):
            keys = [key for key in infos if f"_{key}" in infos and infos[f"_{key}"][row]]
            finals[row] = {key: infos[key][row] for key in keys}
    return rewards, finals


def walk_singly(env, process, rows):
    """Take some completions through the single environment.

    Returns:
        The rewards that ``step`` paid, float64, shape (len(rows), HORIZON), and the last infos.
    """
    rewards, finals = np.zeros((len(rows), HORIZON)), []
    env.reset(seed=0)
    env.step(0)  # An abandoned episode must leave nothing behind.
    for i, row in enumerate(rows):
        prompt = PROMPTS[process.starts[row]]
        env.reset(options={"prompt": prompt, "max_new_tokens": HORIZON})
        for step, token in enumerate(process.completion_ids[row]):
            _, rewards[i, step], terminated, truncated, info = env.step(token)
            assert terminated == (step + 1 == len(process.completion_ids[row]))
            assert not truncated
        finals.append(info)
    return rewards, finals


def shaped_rewards(process, potential, beta, gamma, start="zero"):
    """What :class:`textgym.wrappers.vector.AttentionShaping` pays in every trajectory."""
    envs = vector.AttentionShaping(process.make_envs(), beta, potential, gamma, start=start)
    return walk(process, envs)[0]


def singly_shaped_rewards(process, potential, beta, gamma, rows, start="zero"):
    """What :class:`textgym.wrappers.AttentionShaping` pays in some trajectories."""
    env = AttentionShaping(process.make_env(), beta, potential, gamma, start=start)
    return walk_singly(env, process, rows)[0]


def handed_over_credit(process, assigner):
    """``infos["credit"]`` of every trajectory, float64, shape (num_trajectories, HORIZON)."""
    _, finals = walk(process, vector.CreditAssignment(process.make_envs(), assigner))
    return _stack([final["credit"] for final in finals])


def singly_handed_over_credit(process, assigner, rows):
    """``info["credit"]`` of some trajectories, from the single wrapper."""
    _, finals = walk_singly(CreditAssignment(process.make_env(), assigner), process, rows)
    return _stack([final["credit"] for final in finals])


def _stack(credits):
    result = np.zeros((len(credits), HORIZON))
    for row, credit in enumerate(credits):
        result[row, : len(credit)] = credit
    return result


def sparse_rewards(process):
    """The score at the last step of each trajectory, computed without textgym.credit."""
    result = np.zeros(process.mask.shape)
    result[np.arange(len(result)), process.mask.sum(1) - 1] = process.read().score.numpy()
    return result


def prompt_scores(process):
    """Scores of the prompts, read as texts of their own, shape (num_trajectories,)."""
    texts = Completions.from_lists(
        [ids[:-1] for ids in process.prompt_ids], [ids[-1:] for ids in process.prompt_ids]
    )
    return process.reward_model.read(texts).score.double().numpy()


def random_logits(process, seed):
    """A random policy: logits of every state, shape (num_states, num_actions)."""
    shape = (process.trajectories.num_states, process.trajectories.num_actions)
    return np.random.default_rng(seed).normal(size=shape)


def discounts(gamma):
    """γ^t of every step, shape (HORIZON,)."""
    return gamma ** np.arange(HORIZON)


def reward_to_go_gradient(process, logits, rewards, gamma=1.0):
    """Σ_τ p(τ) Σ_t γ^t G_t ∇log π(a_t|s_t), with G_t the discounted rewards from step t on."""
    to_go = returns_to_go(rewards, process.mask, gamma) * discounts(gamma)
    return policy_gradient(process.trajectories, logits, to_go)


def build(name, policy, beta=None, gamma=1.0, start="zero"):
    """An assigner by its id, with its defaults where it has them."""
    needed = {
        "abc-d": {"policy": policy},
        "abc-d2": {"policy": policy},
        "position": {"profile": [0.2, 0.5, 0.3]},
        "integrated-gradients": {"num_steps": 4},  # by default 32, which takes seconds here
    }
    assigner = CREDIT_ASSIGNERS[name]
    chosen = {"gamma": gamma} if beta is None else {"gamma": gamma, "beta": beta}
    known = inspect.signature(assigner).parameters
    arguments = {key: value for key, value in chosen.items() if key in known}
    return assigner(**arguments, start=start, **needed.get(name, {}))


def can_be_built(name):
    """Whether the optional package that an assigner needs is installed."""
    return name != "integrated-gradients" or find_spec("captum") is not None


def names(*, causal=None):
    """Ids of the registered assigners: all, or only those that declare to be causal or not."""
    return [
        name
        for name, assigner in CREDIT_ASSIGNERS.items()
        if can_be_built(name) and causal in (None, assigner.causal)
    ]
