"""Reference completions, over which the statistics of the reward models are computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.models.build.prompt_set import sample_completions
from textgym.models.completions import Completions
from textgym.models.profile import mean_profile
from textgym.models.readouts import AttentionRow
from textgym.models.reward_model import RewardModel

__all__ = ["attention_profile", "sample_reference_completions"]


def sample_reference_completions(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    num_sequences: int,
    generator: torch.Generator,
    min_new_tokens: int = 8,
    max_new_tokens: int = 16,
) -> list[tuple[list[int], list[int]]]:
    """Sample completions as the environment's default settings would.

    Args:
        model: The language model.
        prompts: Token ids of each prompt, start token included.
        num_sequences: Number of completions; each gets a random prompt.
        generator: CPU generator of all draws.
        min_new_tokens: Smallest token budget; no completion is shorter.
        max_new_tokens: Largest token budget.

    Returns:
        Pairs of token ids: a prompt and its completion.
    """
    picks = torch.randint(len(prompts), (num_sequences,), generator=generator)
    chosen = [prompts[int(pick)] for pick in picks]
    budgets = torch.randint(
        min_new_tokens, max_new_tokens + 1, (num_sequences,), generator=generator
    ).tolist()
    sampled = []
    for first in range(0, num_sequences, 512):
        batch = slice(first, first + 512)
        completions = sample_completions(
            model, chosen[batch], budgets[batch], generator, min_new_tokens
        )
        sampled += list(zip(chosen[batch], completions, strict=True))
    return sampled


def attention_profile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampled: Sequence[tuple[list[int], list[int]]],
) -> list[float]:
    """Mean profile of a reward model's attention over completions.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        sampled: Pairs of token ids: a prompt and its completion.

    Returns:
        Shares of equal parts of a completion, first to last; see :mod:`textgym.models.profile`.
    """
    prompts, completions = zip(*sampled, strict=True)
    batch = Completions.from_lists(prompts, completions)
    reward_model, row = RewardModel(model, tokenizer), AttentionRow()
    attention = [
        reward_model.read(batch.select(slice(first, first + 256)), [row])[row]
        for first in range(0, len(batch), 256)
    ]
    profile = mean_profile(torch.cat(attention), batch.completion_mask)
    return [round(share, 6) for share in profile]
