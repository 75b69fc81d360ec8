"""Sampling completions and prompts from the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["sample_completions", "sample_prompts"]


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    budgets: Sequence[int],
    generator: torch.Generator,
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Sample one completion for each prompt, at temperature 1.

    Args:
        model: The language model.
        prompts: Token ids of each prompt, start token included.
        budgets: Largest number of tokens of each completion.
        generator: CPU generator of all draws.
        min_new_tokens: The end token is masked while a completion is shorter than this.

    Returns:
        Token ids of each completion, up to and including the end token.
    """
    model.eval()
    eos_token_id = model.config.eos_token_id
    width = max(len(prompt) for prompt in prompts)
    # With padding on the left, the last column holds the last prompt token of every row.
    tokens = torch.tensor(
        [[model.config.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
    )
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    chosen, cache = [], None
    for step in range(max(budgets)):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logits = output.logits[:, -1].float().cpu()  # (batch, vocab)
        if step < min_new_tokens:
            logits[:, eos_token_id] = -torch.inf
        tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)  # (batch, 1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        chosen.append(tokens)
    completions = []
    for row, budget in zip(torch.cat(chosen, dim=1).tolist(), budgets, strict=True):
        row = row[:budget]
        end = row.index(eos_token_id) + 1 if eos_token_id in row else budget
        completions.append(row[:end])
    return completions


def sample_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_prompts: int,
    generator: torch.Generator,
    min_tokens: int = 2,
    max_tokens: int = 8,
) -> list[str]:
    """Sample the beginnings of reviews from the language model.

    All lengths occur equally often. A beginning is kept if it is new, contains no special token and
    no broken character, and its text is tokenized back to the same tokens.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        num_prompts: Number of prompts.
        generator: CPU generator of all draws.
        min_tokens: Shortest prompt, without the start token.
        max_tokens: Longest prompt, without the start token.

    Returns:
        The prompts as text, all different.

    Raises:
        RuntimeError: If too few sampled texts can be kept.
    """
    special = set(tokenizer.all_special_ids)
    start = [tokenizer.bos_token_id]
    prompts: dict[str, None] = {}  # ordered, without duplicates
    for _ in range(200):
        sampled = sample_completions(
            model, [start] * num_prompts, [max_tokens] * num_prompts, generator
        )
        for ids in sampled:
            length = min_tokens + len(prompts) % (max_tokens - min_tokens + 1)
            ids = ids[:length]
            text = str(tokenizer.decode(ids))
            if (
                len(ids) == length
                and special.isdisjoint(ids)
                and "\ufffd" not in text
                and tokenizer(text)["input_ids"] == start + ids
            ):
                prompts[text] = None
            if len(prompts) == num_prompts:
                return list(prompts)
    raise RuntimeError(f"only {len(prompts)} of {num_prompts} prompts found: is the model trained?")
