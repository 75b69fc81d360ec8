"""The samples that a run keeps, and that training does not notice them."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.commands import ONE_LINE, SMALL, flags
from tests.cli.test_cli_train import assert_same_run
from textgym.cli import main
from textgym.cli.samples_file import SAMPLES, read_samples
from textgym.errors import InvalidArgumentError

MORE = ["--total-timesteps", "40", "--save-every", "1"]


def rows(folder):
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A run that kept samples at each iteration."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["train", *SMALL, *flags(models), *MORE, "--output", str(folder)]) == 0
    return folder


def test_samples_are_kept_at_the_start_at_checkpoints_and_at_the_end(whole):
    iterations = len((whole / "metrics.jsonl").read_text().splitlines())
    kept = [row["iteration"] for row in rows(whole)]
    assert kept == [n for n in range(iterations + 1) for _ in range(4)]


def test_the_same_prompts_are_completed_each_time(whole):
    prompts = [row["prompt"] for row in rows(whole)]
    assert prompts == prompts[:4] * (len(prompts) // 4)


def test_credit_sums_to_the_score(whole):
    for row in rows(whole):
        assert sum(row["credit"]) == pytest.approx(row["score"], abs=1e-4)
        assert len(row["credit"]) == len(row["pieces"]) == len(row["completion_ids"])


def test_training_is_the_same_without_samples(whole, models, tmp_path):
    command = ["train", *SMALL, *flags(models), *MORE, "--output", str(tmp_path), "--samples", "0"]
    assert main(command) == 0
    assert not (tmp_path / SAMPLES).exists()
    assert_same_run(whole, tmp_path)


def test_a_run_that_goes_on_has_the_samples_of_an_unbroken_one(whole, models, tmp_path):
    assert main(["train", *SMALL, *flags(models), *MORE[2:], "--output", str(tmp_path)]) == 0
    with (tmp_path / SAMPLES).open("a") as file:  # of an iteration after the checkpoint
        file.write(json.dumps(rows(tmp_path)[0] | {"iteration": 99}) + "\n")
    assert main(["train", "--resume", str(tmp_path), *MORE]) == 0
    assert rows(tmp_path) == rows(whole)
    assert_same_run(whole, tmp_path)


def test_each_checkpoint_has_samples_wherever_the_run_was_interrupted(models, tmp_path):
    command = ["train", *SMALL, *flags(models), "--output", str(tmp_path)]
    assert main([*command, "--total-timesteps", "1"]) == 0  # one iteration
    more = ["--total-timesteps", "60", "--save-every", "2", "--save-total-limit", "99"]
    assert main(["train", "--resume", str(tmp_path), *more]) == 0
    checkpoints = {int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()}
    assert {1, 3, 5} <= checkpoints
    assert {row["iteration"] for row in rows(tmp_path)} == {0} | checkpoints


def test_a_line_that_is_still_being_written_is_left_out(whole, tmp_path):
    (tmp_path / SAMPLES).write_text((whole / SAMPLES).read_text() + '{"iteration": 9, "pro')
    assert read_samples(tmp_path, "runs") == read_samples(whole, "runs")


@pytest.mark.parametrize("line", ["{}", "7", "words", '{"iteration": []}'])
def test_a_damaged_file_is_refused(line, tmp_path):
    (tmp_path / SAMPLES).write_text(line + "\n")
    with pytest.raises(InvalidArgumentError, match=r"runs=.*samples\.jsonl is damaged"):
        read_samples(tmp_path, "runs")


def test_there_can_be_more_samples_than_rows_of_the_environment(models, tmp_path):
    command = ["train", *SMALL, *flags(models), "--samples", "5", "--output", str(tmp_path)]
    assert main(command) == 0
    assert [row["iteration"] for row in rows(tmp_path)][:6] == [0] * 5 + [2]


def test_a_run_with_a_damaged_file_does_not_go_on(models, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / SAMPLES).write_text("words\n")
    assert main(["train", "--resume", str(folder), "--total-timesteps", "40"]) == 2
    assert ONE_LINE.fullmatch(error := capsys.readouterr().err)
    assert "resume=" in error
    assert "samples.jsonl is damaged" in error
