r"""Helpful answers in dialogues of one turn: adapters on an OpenLLaMA of 7B weights.

python examples/recipes/dialogue.py --device cuda             # needs the hub and one large GPU
python examples/recipes/dialogue.py --device cuda --four-bit  # the policy in 4 bits, as the paper's
python examples/recipes/dialogue.py --device cuda --credit sparse  # the control
python examples/recipes/dialogue.py --policy embedded --reward-base embedded \
    --transcripts transcripts.jsonl --max-new-tokens 48       # small and offline

What was run: the whole script, on a CPU, with a Llama of 0.3 M weights and dialogues made of film
reviews. What was not: the models of 7B and 3B weights, 4 bits, a GPU.

The data have the columns chosen and rejected, transcripts as in Anthropic/hh-rlhf. Those with one
question are used. The policy gets the question in the words that it was tuned on, the reward model
in its own. With --reward-base a reward model is trained on the transcripts; the paper takes a ready
one.

In the paper (Chan et al., arXiv 2402.00782) every completion may have 256 tokens, and may end from
the 8th on. Here the largest number is drawn between 8 and 256 for each episode.
Sources: experiments/bash/openllama.sh, experiments/scripts/rlhf_openllama.py and
abcrl/datasets/anthropic_hh.py of the repository that recipe.py names.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from recipe import (
    HELD_OUT_ONE_IN,
    LORA,
    load_large_policy,
    make_reward_model,
    parse,
    rows,
    train,
)

from textgym.models import RewardModel, load_reward_model, load_tokenizer
from textgym.prompts import FixedPrompts, encode_prompts
from textgym.reward_training import Pair, RewardRecipe

FOR_POLICY = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{prompt}\n\n### Response:"
)
FOR_REWARD_MODEL = "###Human: {prompt} ###Assistant: {completion}"


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--policy", default="VMware/open-llama-7b-open-instruct")
    add("--transcripts", default="Anthropic/hh-rlhf", help="hub id or file")
    add("--part", default="helpful-base", help="folder of the hub dataset")
    add("--reward-model", default="weqweasdas/hh_rlhf_rm_open_llama_3b", help="folder or hub id")
    add("--reward-base", help="to make a reward model instead")
    add("--max-prompt-tokens", type=int, default=256, help="longer prompts are left out")
    add("--four-bit", action="store_true", help="load the policy in 4 bits, with bitsandbytes")


def turn_of(transcript: str) -> Turn | None:
    """The turn of a transcript; None if it has several."""
    if transcript.count("\n\nHuman:") != 1 or transcript.count("\n\nAssistant:") != 1:
        return None
    question, answer = transcript.split("\n\nAssistant:")
    return Turn(question.removeprefix("\n\nHuman:").strip(), answer.strip())


def main() -> None:
    arguments = parse(
        add_arguments,
        __doc__.splitlines()[0],
        iterations=200,
        episodes=16,
        min_new_tokens=8,
        max_new_tokens=256,
    )
    transcripts = rows(arguments.transcripts, arguments.limit, data_dir=arguments.part)
    both = [(turn_of(row["chosen"]), turn_of(row["rejected"])) for row in transcripts]
    pairs = [(chosen, rejected) for chosen, rejected in both if chosen and rejected]
    print(f"{len(pairs):,} of {len(transcripts):,} transcripts have one turn")
    name = arguments.reward_model
    if arguments.reward_base:
        texts = [
            [FOR_REWARD_MODEL.format(prompt=turn.question, completion=turn.answer) for turn in pair]
            for pair in pairs
        ]
        recipe = RewardRecipe(  # as the paper's reward model of summaries is trained
            epochs=arguments.reward_epochs or 1,
            learning_rate=1.41e-5,
            batch_size=4,
            max_length=512,
            prefix_share=arguments.prefix_share,
            center_coef=0.0,
            seed=arguments.seed,
        )
        examples = [Pair(chosen, rejected) for chosen, rejected in texts]
        name = make_reward_model(arguments.reward_base, examples, recipe, arguments)
    loaded = load_reward_model(name, device=arguments.device)
    reward_model = RewardModel(
        loaded.model, loaded.tokenizer, normalize_score=False, template=FOR_REWARD_MODEL
    )
    tokenizer = load_tokenizer(arguments.policy)
    questions = [chosen.question for chosen, _ in pairs]
    encoded = encode_prompts([FOR_POLICY.format(prompt=q) for q in questions], tokenizer)
    # What the reward model reads of each prompt: the question alone.
    said = {tuple(ids): question for ids, question in zip(encoded, questions, strict=True)}
    short = [ids for ids in encoded if len(ids) < arguments.max_prompt_tokens]
    held_out = short[::HELD_OUT_ONE_IN]
    rest = [ids for number, ids in enumerate(short) if number % HELD_OUT_ONE_IN]
    policy = load_large_policy(arguments.policy, arguments)
    prompts = FixedPrompts(rest, said), FixedPrompts(held_out, said)
    # Ten epochs: ppo_epochs in rlhf_openllama.py.
    train(policy, tokenizer, reward_model, prompts, arguments, lora=LORA, num_epochs=10)


if __name__ == "__main__":
    main()
