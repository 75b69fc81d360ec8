"""What the build samples from the language model: completions and prompts."""

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
        budgets: Number of tokens after which each completion ends, if it has not ended by then.
        generator: CPU generator of all the draws.
        min_new_tokens: The end token is masked while a completion has fewer tokens.

    Returns:
        Token ids of each completion, up to and including the end token.
    """
    model.eval()
    eos_token_id = model.config.eos_token_id
    width = max(len(prompt) for prompt in prompts)
    # Left padding: the last column holds the last prompt token of every row.
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

    Every length occurs equally often. A beginning is kept if no other is equal to it, it holds no
    special token and no broken character, and the tokenizer maps its text back to its tokens.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        num_prompts: How many to sample.
        generator: CPU generator of all the draws.
        min_tokens: Shortest prompt, start token not counted.
        max_tokens: Longest prompt, start token not counted.

    Returns:
        The prompts as text, all different.

    Raises:
        RuntimeError: If the model hardly ever writes a text that can be kept.
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
