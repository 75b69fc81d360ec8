"""Sentiment of film reviews: GPT-2 learns to write praise (Chan et al., arXiv 2402.00782).

python examples/recipes/imdb.py                       # the paper's models and data; needs the hub
python examples/recipes/imdb.py --credit sparse       # the control
python examples/recipes/imdb.py --policy embedded --reward-base embedded --reviews reviews.jsonl
                                                      # small and offline

What was run: the whole script, on a CPU, with models of a few million weights and a few hundred
reviews. What was not: GPT-2 on the full data.

The data have the columns text and label (0 or 1), as stanfordnlp/imdb does. Prompts are the first
2 to 8 tokens of reviews of more than 200 characters; completions have 8 to 16 tokens. The authors'
sampler of lengths leaves out the upper ends, so theirs are 2 to 7 and 8 to 15.
Sources: experiments/bash/IMDb_base.sh, experiments/scripts/rlhf_imdb.py and
abcrl/reward_modelling/train_model_imdb.py of the repository that recipe.py names.
"""

from __future__ import annotations

import argparse

from recipe import HELD_OUT_ONE_IN, make_reward_model, parse, rows, train

from textgym.models import load_tokenizer
from textgym.prompts import PrefixPrompts, encode_prompts
from textgym.reward_training import Labelled, RewardRecipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", default="lvwerra/gpt2-imdb", help="GPT-2 tuned on the reviews")
    parser.add_argument("--reviews", default="stanfordnlp/imdb", help="hub id or file")
    parser.add_argument("--reward-base", default="lvwerra/gpt2-imdb", help="to make a reward model")
    parser.add_argument("--reward-model", help="a ready one: folder or hub id")


def prompts_of(reviews: list[str], tokenizer) -> PrefixPrompts:
    texts = [text[:100] for text in reviews if len(text) > 200]  # 8 tokens are in 100 characters.
    encoded = encode_prompts(texts, tokenizer)
    bare = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    return PrefixPrompts(encoded, 2, 8, num_special=len(encoded[0]) - len(bare))


def main() -> None:
    arguments = parse(
        add_arguments,
        __doc__.splitlines()[0],
        iterations=150,
        episodes=16,
        min_new_tokens=8,
        max_new_tokens=16,
    )
    reviews = rows(arguments.reviews, arguments.limit)
    reward_model = arguments.reward_model or make_reward_model(
        arguments.reward_base,
        [Labelled(row["text"], row["label"]) for row in reviews],
        RewardRecipe(  # the defaults of transformers' Trainer, two epochs, one text per step
            epochs=arguments.reward_epochs or 2,
            learning_rate=5e-5,
            batch_size=1,
            max_length=1024,
            prefix_share=arguments.prefix_share,
            seed=arguments.seed,
        ),
        arguments,
    )
    tokenizer = load_tokenizer(arguments.policy)
    texts = [row["text"] for row in reviews]
    held_out = texts[::HELD_OUT_ONE_IN]
    rest = [text for number, text in enumerate(texts) if number % HELD_OUT_ONE_IN]
    prompts = prompts_of(rest, tokenizer), prompts_of(held_out, tokenizer)
    train(arguments.policy, tokenizer, reward_model, prompts, arguments)


if __name__ == "__main__":
    main()
