r"""Summaries of Reddit posts: adapters on a GPT-J of 6B weights (Chan et al., arXiv 2402.00782).

python examples/recipes/tldr.py --device cuda             # needs the hub and one large GPU
python examples/recipes/tldr.py --device cuda --four-bit  # the policy in 4 bits, as the paper's
python examples/recipes/tldr.py --device cuda --credit sparse  # the control
python examples/recipes/tldr.py --policy embedded --reward-base embedded \
    --posts posts.jsonl --comparisons comparisons.jsonl   # small and offline

What was run: the whole script, on a CPU, with a GPT-J of 0.3 M weights and posts made of film
reviews. What was not: the model of 6B weights, 4 bits, a GPU.

The posts have the column prompt, which ends with "TL;DR:", as CarperAI/openai_summarize_tldr does;
the comparisons have prompt, chosen and rejected, as CarperAI/openai_summarize_comparisons does,
whose summaries begin with "TL;DR:". The authors use the same posts from
openai/summarize_from_feedback, in a form of words that their policy was tuned on.

Their reward model is an adapter on another GPT-J (Holarissun/trl_rm_tldr_gptj): merge it into its
base, and pass the folder as --reward-model. Without that, GPT-2 is trained on the comparisons as
their train_rm_tldr.py trains, without adapters.

In the paper every completion may have 48 tokens, and may end from the 8th on. Here the largest
number is drawn between 8 and 48 for each episode.
Sources: experiments/bash/tldr.sh, experiments/scripts/rlhf_tldr.py and
abcrl/reward_modelling/train_rm_tldr.py of the repository that recipe.py names.
"""

from __future__ import annotations

import argparse

from recipe import (
    HELD_OUT_ONE_IN,
    LORA,
    load_large_policy,
    make_reward_model,
    parse,
    rows,
    train,
)

from textgym.models import load_tokenizer
from textgym.prompts import FixedPrompts, encode_prompts
from textgym.reward_training import Pair, RewardRecipe

START = "TL;DR:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--policy", default="CarperAI/openai_summarize_tldr_sft", help="a tuned GPT-J 6B")
    add("--posts", default="CarperAI/openai_summarize_tldr", help="hub id or file")
    add("--comparisons", default="CarperAI/openai_summarize_comparisons", help="hub id or file")
    add("--reward-base", default="gpt2", help="to make a reward model")
    add("--reward-model", help="a ready one: folder or hub id")
    add("--max-prompt-tokens", type=int, default=450, help="longer posts are left out")
    add("--four-bit", action="store_true", help="load the policy in 4 bits, with bitsandbytes")


def post_of(prompt: str) -> str:
    """A post up to the words that its summary follows."""
    return prompt.strip().removesuffix(START).rstrip() + f"\n{START}"


def pair_of(row: dict[str, str]) -> Pair:
    """Two summaries of a post, in the form that the policy writes them."""
    chosen, rejected = (
        f"{post_of(row['prompt'])} {row[name].strip().removeprefix(START).strip()}"
        for name in ("chosen", "rejected")
    )
    return Pair(chosen, rejected)


def main() -> None:
    arguments = parse(
        add_arguments,
        __doc__.splitlines()[0],
        iterations=200,
        episodes=4,
        min_new_tokens=8,
        max_new_tokens=48,
    )
    reward_model = arguments.reward_model or make_reward_model(
        arguments.reward_base,
        [pair_of(row) for row in rows(arguments.comparisons, arguments.limit)],
        RewardRecipe(
            epochs=arguments.reward_epochs or 1,
            learning_rate=1.41e-5,
            batch_size=4,
            max_length=512,
            prefix_share=arguments.prefix_share,
            center_coef=0.0,
            seed=arguments.seed,
        ),
        arguments,
    )
    tokenizer = load_tokenizer(arguments.policy)
    posts = [post_of(row["prompt"]) for row in rows(arguments.posts, arguments.limit)]
    short = [
        ids for ids in encode_prompts(posts, tokenizer) if len(ids) < arguments.max_prompt_tokens
    ]
    held_out = short[::HELD_OUT_ONE_IN]
    rest = [ids for number, ids in enumerate(short) if number % HELD_OUT_ONE_IN]
    policy = load_large_policy(arguments.policy, arguments)
    prompts = FixedPrompts(rest), FixedPrompts(held_out)
    train(policy, tokenizer, reward_model, prompts, arguments, lora=LORA)


if __name__ == "__main__":
    main()
