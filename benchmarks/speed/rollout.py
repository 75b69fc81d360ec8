"""Sampling: episodes through the environment against ``generate`` of transformers.

Both sample from the same model at temperature 1 over the whole vocabulary, from prompts of the same
source, in batches of the same size. ``generate`` returns when the longest completion of a batch is
done. A rollout also scores every completion with the embedded reward model, steps the environment
and notes the log-probabilities. Two ratios are given: of the whole, and without the seconds of
scoring, which ``generate`` does not do.

Two forms: completions of equal length, where no row waits for another; and ragged ones of 8 to 16
tokens, the environment's default, in four batches one after the other (two with GPT-2). With ragged
ones only the tokens of the completions count, and a rollout starts a row's next episode while the
other rows go on.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from transformers import PreTrainedModel

from harness.timing import Stopwatch, side_by_side
from speed import models
from speed.ratios import result
from textgym.agents import ActionRules, LanguageModelPolicy, collect_episodes
from textgym.agents.environment import left_padded

__all__ = ["measure"]

BATCHES = (1, 16, 64)
GOALS = {"embedded": ">= 2", "gpt2-small": ">= 1.3"}


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Tokens per second of a rollout ÷ those of ``generate``; more is better.

    Args:
        quick: Small sizes, for tests.
    """
    rows = []
    lengths = {"embedded": 4 if quick else 32, "gpt2-small": 4 if quick else 16}
    for name in lengths:
        for dtype in models.dtypes():
            # A copy: the embedded model is shared, and its dtype would change everywhere.
            model = copy.deepcopy(models.language_model(name, quick))
            model = model.to(dtype)  # type: ignore[arg-type]
            for batch in (2,) if quick else BATCHES:
                rows += _compare(name, model, batch, equal=lengths[name], quick=quick)
                too_slow = name == "gpt2-small" and dtype == torch.float32 and batch == 64
                if batch > 1 and not too_slow:
                    rows += _compare(name, model, batch, equal=None, quick=quick)
    return rows


def _compare(
    name: str, model: PreTrainedModel, batch: int, equal: int | None, quick: bool
) -> list[dict[str, Any]]:
    """One batch size, completions of ``equal`` tokens or, if that is None, of 8 to 16."""
    dtype = str(model.dtype).removeprefix("torch.")
    small = name == "embedded" or quick
    ragged = 1 if quick else 4 if small else 2
    shortest, longest, batches = (8, 16, ragged) if equal is None else (equal, equal, 1)
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        batch,
        min_new_tokens=shortest,
        max_new_tokens=longest,
        dtype=dtype,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    # A model with random weights would end completions at random. Here each uses up its budget.
    base: Any = envs.unwrapped
    vocabulary = int(base.single_action_space.n)
    rules = ActionRules(vocabulary, base.tokenizer.eos_token_id, longest)
    policy = LanguageModelPolicy(model, rules)
    generator = torch.Generator().manual_seed(0)
    counts: list[int] = []
    scoring = Stopwatch(base.task.score)
    base.task.score = scoring

    def collect() -> None:
        rollout = collect_episodes(policy, envs, batches * batch, generator)
        counts.append(int(rollout.episode_lengths.sum()))

    roll_out = Stopwatch(collect)
    observations, _ = envs.reset(seed=0)
    ids, mask = map(torch.from_numpy, left_padded(observations, 0))

    @torch.inference_mode()
    def generate() -> None:
        for _ in range(batches):
            model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask.long(),
                do_sample=True,
                top_k=0,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )

    rounds = 2 if quick else 7 if small else 3
    times = side_by_side(
        {"rollout": roll_out, "generate": generate}, rounds, min_seconds=0.3 if small else 0.0
    )
    # Only tokens of completions count, on both sides.
    tokens = {
        "rollout": float(np.mean(counts)),
        "generate": batches * batch * (shortest + longest) / 2,
    }
    more = tokens["rollout"] / tokens["generate"]
    ratio = [more * bound for bound in times.ratio("generate", "rollout")]
    share = scoring.seconds / roll_out.seconds
    case = f"{name} {dtype}, {batch} x {longest if equal else '8 to 16'} tokens"
    quantity = "tokens/s of the rollout / of generate"
    whole = result(
        "rollout",
        case,
        quantity,
        (ratio[0], ratio[1], ratio[2]),
        GOALS[name] if batch in (16, 64) else None,
        tokens_per_second={side: round(tokens[side] / times.median(side), 1) for side in tokens},
        share_of_scoring=round(share, 3),
        seconds=times.seconds,
    )
    low, middle, high = (bound / (1 - share) for bound in (ratio[1], ratio[0], ratio[2]))
    without = result("rollout", case, f"{quantity}, without the scores", (middle, low, high))
    return [whole, without]
