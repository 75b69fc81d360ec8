"""The build of the gold reward model, at a tiny size."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import SENTENCES
from textgym.errors import InvalidArgumentError
from textgym.models import RewardModel
from textgym.models.build.gold_reward_model import (
    GoldBuildOptions,
    GoldRecipe,
    build_gold,
    unseen_reviews,
)
from textgym.models.loading import load_reward_model
from textgym.reviews import load_reviews, read_review_folder

RECIPE = GoldRecipe(
    vocab_size=120,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    row_length=16,
    passes=1,
    batch_size=8,
)


@pytest.fixture
def folder(tmp_path):
    """A dataset as it is published: a hundred short reviews, and one that textgym has already."""
    rng = np.random.default_rng(0)
    known = load_reviews("held_out", "imdb")[0].text
    for kind, word in (("pos", "good"), ("neg", "bad")):
        (tmp_path / "test" / kind).mkdir(parents=True)
        for number in range(50):
            text = f"{' '.join(rng.choice(SENTENCES, 8))} {word} {number}<br />"
            (tmp_path / "test" / kind / f"{number}_1.txt").write_text(text)
    (tmp_path / "test" / "pos" / "99_9.txt").write_text(known)
    return tmp_path


def test_reviews_are_read_cleaned_and_labelled(folder):
    reviews = read_review_folder(folder / "test")
    assert len(reviews) == 101
    assert sum(review.label for review in reviews) == 51
    assert not any("<br" in review.text for review in reviews)
    with pytest.raises(InvalidArgumentError, match=r"neg/\*\.txt"):
        read_review_folder(folder)


def test_a_review_that_the_first_model_saw_is_left_out(folder):
    train, held_out = unseen_reviews(folder)
    texts = {review.text for review in train + held_out}
    assert len(texts) == 100
    assert load_reviews("held_out", "imdb")[0].text not in texts


def test_the_build_writes_a_reward_model_with_its_figures(folder, tmp_path):
    output = tmp_path / "gold"
    build_gold(GoldBuildOptions(folder, output=output, work=tmp_path / "work", recipe=RECIPE))
    reward_model = load_reward_model(output)
    assert isinstance(reward_model, RewardModel)
    assert not reward_model.is_causal
    tokens = reward_model.tokenizer.convert_ids_to_tokens(
        reward_model.tokenizer("a good film")["input_ids"]
    )
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert "| 8-24 |" in (output / "README.md").read_text(encoding="utf-8")
