"""The recipes for the paper's three tasks run from end to end on small stand-ins.

The data have the columns and the form of the real ones, and their texts are film reviews. The
models are tiny, of the families that the recipes are for.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from textgym.models import load_tokenizer
from textgym.reviews import load_reviews

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
SMALL = (
    "--iterations", "1", "--episodes", "4", "--evaluate", "8", "--min-new-tokens", "3",
    "--max-new-tokens", "6", "--device", "cpu", "--output", "out",
)  # fmt: skip
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OLD_SIZES = {"vocab_size": 4096, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and data: gpt2, gptj, llama, reviews, posts, comparisons, transcripts."""
    folder = tmp_path_factory.mktemp("stand_ins")
    torch.manual_seed(0)
    models = {
        "gpt2": GPT2LMHeadModel(GPT2Config(**OLD_SIZES, **TOKENS)),
        "gptj": GPTJForCausalLM(GPTJConfig(**OLD_SIZES, **TOKENS, rotary_dim=8)),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=512, **TOKENS,
            )
        ),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(folder / name)
        load_tokenizer("embedded").save_pretrained(folder / name)

    reviews = load_reviews("held_out", "imdb")
    good = [one.text[:250] for one in reviews if one.label][:120]
    bad = [one.text[:250] for one in reviews if not one.label][:120]
    both = list(zip(good, bad, strict=True))
    posts = [f"SUBREDDIT: r/films\nTITLE: {a[:20]}\nPOST: {a[:80]}" for a in good]
    labelled = [(a, 1) for a in good] + [(b, 0) for b in bad]
    write(folder, "reviews", [{"text": text, "label": label} for text, label in labelled])
    write(folder, "posts", [{"prompt": f"{p}\nTL;DR:", "label": " A film."} for p in posts])
    write(
        folder,
        "comparisons",
        [
            {"prompt": post, "chosen": f"TL;DR: {a[:40]}", "rejected": f"TL;DR: {b[:40]}"}
            for post, (a, b) in zip(posts, both, strict=True)
        ],
    )
    question = "\n\nHuman: What did you think of {}?\n\nAssistant:"
    write(
        folder,
        "transcripts",
        [
            {
                "chosen": f"{question.format(a[:20])} {a[:60]}",
                "rejected": f"{question.format(a[:20])} {b[:60]}",
            }
            for a, b in both
        ],
    )
    return folder


def write(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ARGUMENTS = {
    "imdb": ("--policy", "gpt2", "--reward-base", "gpt2", "--reviews", "reviews.jsonl"),
    "tldr": (
        "--policy", "gptj", "--reward-base", "gpt2", "--posts", "posts.jsonl",
        "--comparisons", "comparisons.jsonl",
    ),
    "dialogue": (
        "--policy", "llama", "--reward-base", "llama", "--transcripts", "transcripts.jsonl",
    ),
}  # fmt: skip


def run(name, folder, tmp_path, *further):
    stand_ins = {path.name for path in folder.iterdir()}
    arguments = [str(folder / one) if one in stand_ins else one for one in ARGUMENTS[name]]
    done = subprocess.run(
        [sys.executable, RECIPES / f"{name}.py", *arguments, *SMALL, *further],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_recipe_is_tested():
    assert {path.stem for path in RECIPES.glob("*.py")} == set(ARGUMENTS) | {"recipe"}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_recipe_trains_both_models_and_measures_the_policy(name, folder, tmp_path):
    shown = run(name, folder, tmp_path)
    assert re.search(r"reward model: accuracy on \d+ held-out examples", shown)
    trained, total = re.search(r"policy: ([\d,]+) of ([\d,]+) parameters", shown).groups()
    trained, total = (int(number.replace(",", "")) for number in (trained, total))
    # All weights and the value head, or adapters.
    assert trained == total + 33 if name == "imdb" else trained < total / 4
    assert "PPO with AttentionCredit(beta=0.8" in shown
    measured = re.findall(r"(before|after) +training, .*: score [+-][\d.]+ ± [\d.]+, KL", shown)
    assert measured == ["before", "after"]
    row = json.loads((tmp_path / "out" / "log" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["train/learning_rate"] == pytest.approx(1.41e-5)
    assert row["train/kl_coef"] == pytest.approx(0.2)
    assert (tmp_path / "out" / "reward_model" / "evaluation.json").is_file()
    assert (tmp_path / "out" / "agent" / "training.safetensors").is_file()


def test_the_control_is_a_flag_and_a_ready_reward_model_is_taken(folder, tmp_path):
    shown = run("imdb", folder, tmp_path, "--credit", "sparse", "--reward-model", "embedded")
    assert "PPO with SparseCredit" in shown
    assert "reward model: accuracy" not in shown


# --- The forms of the data


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module


def test_pairs_of_summaries_have_the_form_that_the_policy_writes(recipe):
    tldr = recipe("tldr")
    row = {
        "prompt": "SUBREDDIT: r/x\nTITLE: Y\nPOST: Z",
        "chosen": "TL;DR:  Mum broke it.",
        "rejected": "TL;DR: It broke.",
    }
    pair = tldr.pair_of(row)
    assert pair.chosen == "SUBREDDIT: r/x\nTITLE: Y\nPOST: Z\nTL;DR: Mum broke it."
    assert pair.rejected.startswith(tldr.post_of(row["prompt"] + "\nTL;DR:"))


def test_only_transcripts_of_one_turn_are_used(recipe):
    dialogue = recipe("dialogue")
    one = "\n\nHuman: Why: is it?\n\nAssistant: Because\n\nit is."
    assert dialogue.turn_of(one) == ("Why: is it?", "Because\n\nit is.")
    assert dialogue.turn_of(one + "\n\nHuman: Really?\n\nAssistant: Yes.") is None
