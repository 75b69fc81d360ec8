"""Many episodes in one process, with all that reads them switched on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

import textgym  # noqa: F401  (registers the environments)
from textgym.credit import AttentionWeightedPrefixScore
from textgym.credit.potentials import Potential
from textgym.memory import keep_freed_memory
from textgym.models import Completions, load_language_model, load_tokenizer
from textgym.wrappers.vector import (
    AttentionShaping,
    CreditAssignment,
    LanguageModelFeatures,
    ReferenceLogProb,
)

__all__ = ["soak"]

NUM_ENVS, TOP_K, COEF, EVERY = 64, 16, 0.05, 1000


def soak(num_episodes: int, seed: int) -> pd.DataFrame:
    """A row per thousand episodes: memory, and how far caches have drifted.

    Args:
        num_episodes: How many to play.
        seed: Of the prompts and of the actions.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    mode = AutoresetMode.NEXT_STEP
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=NUM_ENVS, autoreset_mode=mode)
    envs = CreditAssignment(ReferenceLogProb(AttentionShaping(envs), COEF), "abc")
    envs = LanguageModelFeatures(envs, top_k=TOP_K)
    base = envs.unwrapped
    judge = FullForward(base.min_new_tokens)
    potential = AttentionWeightedPrefixScore()
    rng, started = np.random.default_rng(seed), time.monotonic()
    envs.reset(seed=seed)
    logprobs = np.zeros(NUM_ENVS)  # of the completions so far, as the wrapper says
    shaping = np.zeros(NUM_ENVS)  # sums to the potential of the text so far
    rows, played, next_note = [], 0, 0
    drift = potential_drift = 0.0
    while played < num_episodes:
        was_over = base.ended.copy()  # these rows are reset in this step
        *_, infos = envs.step(rng.integers(0, TOP_K, NUM_ENVS))
        logprobs = np.where(was_over, 0.0, logprobs + infos["reference_logprob"] / COEF)
        shaping = np.where(was_over, 0.0, shaping + infos["shaping"])
        ended = np.flatnonzero(base.ended)
        if not len(ended):
            continue
        played += len(ended)
        if played >= min(next_note, num_episodes):
            next_note += EVERY
            whole = judge(base.completions, ended)
            drift = max(drift, float(np.abs(logprobs[ended] - whole).max()))
            going_on = ~base.ended
            whole = potential_difference(potential, base, going_on)
            potential_drift = max(potential_drift, float(np.abs(shaping[going_on] - whole).max()))
            rows.append(
                {
                    "episodes": played,
                    "mib": _resident_mib(),
                    "drift": drift,
                    "potential_drift": potential_drift,
                    "seconds": round(time.monotonic() - started, 1),
                }
            )
    return pd.DataFrame(rows)


class FullForward:
    """Log-probabilities of whole completions, without any cache.

    Args:
        min_new_tokens: EOS is no legal token, and has no probability, before so many.
    """

    def __init__(self, min_new_tokens: int) -> None:
        tokenizer = load_tokenizer("embedded")
        self.policy = load_language_model("embedded")
        self.eos, self.min_new_tokens = tokenizer.eos_token_id, min_new_tokens

    @torch.no_grad()
    def __call__(self, texts: Completions, rows: np.ndarray) -> np.ndarray:
        texts = Completions(
            texts.input_ids[rows], texts.attention_mask[rows], texts.completion_mask[rows]
        )
        logits = self.policy(
            input_ids=texts.input_ids, attention_mask=texts.attention_mask.long()
        ).logits
        logits = logits[:, :-1]  # the logits in column t are those of the token in column t + 1
        generated = texts.completion_mask.cumsum(1)[:, :-1]
        chosen = texts.input_ids[:, 1:]
        # An illegal EOS that was chosen all the same is measured as if it were legal.
        is_out = (generated < self.min_new_tokens) & (chosen != self.eos)
        logits[..., self.eos].masked_fill_(is_out, -torch.inf)
        logprobs = logits.log_softmax(-1).gather(2, chosen[..., None]).squeeze(2)
        return logprobs.masked_fill(~texts.completion_mask[:, 1:], 0.0).sum(1).numpy()


def potential_difference(potential: Potential, env: VectorEnv, rows: np.ndarray) -> np.ndarray:
    """Φ(text) - Φ(prompt) of some rows, by a forward pass over each whole text."""
    texts = env.completions.select(torch.from_numpy(rows))
    scored = env.reward_model.read(texts, potential.readouts)
    return (potential.newest(scored) - potential.start_values(scored)).numpy()


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)
