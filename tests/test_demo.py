import io
import json
import statistics

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from textgym.demo import METHODS, run_demo, summarize, summary_table
from textgym.errors import InvalidArgumentError

ITERATIONS = 2


@pytest.fixture(scope="module")
def demo(tiny, language_model, tmp_path_factory):
    """The output folder of a short demo, and what it printed."""
    out = io.StringIO()
    folder = run_demo(
        tmp_path_factory.mktemp("demo") / "out",
        iterations=ITERATIONS,
        seed=7,
        policy=language_model,
        console=Console(file=out, width=160, highlight=False),
        dtype="float32",
        num_epochs=1,
        **{**tiny, "max_new_tokens": 4},
    )
    return folder, out.getvalue()


@pytest.fixture(scope="module")
def rows(demo):
    return [json.loads(line) for line in (demo[0] / "results.jsonl").read_text().splitlines()]


def test_results_hold_every_run_and_iteration(demo, rows):
    assert [(row["method"], row["time/iteration"]) for row in rows] == [
        (method.name, i + 1) for method in METHODS for i in range(ITERATIONS)
    ]
    for method in METHODS:
        log = (demo[0] / method.name / "metrics.jsonl").read_text().splitlines()
        mine = [row for row in rows if row["method"] == method.name]
        assert [{**json.loads(line), "method": method.name, "seed": 7} for line in log] == mine


def test_all_methods_start_from_the_same_episodes(rows):
    first = [row for row in rows if row["time/iteration"] == 1]
    for metric in ("rollout/score_mean", "rollout/episode_length", "rollout/kl"):
        assert len({row[metric] for row in first}) == 1
    # But they learn from different rewards.
    assert len({row["train/policy_loss"] for row in first}) == len(METHODS)


def test_meta_says_how_the_results_came_about(demo):
    meta = json.loads((demo[0] / "meta.json").read_text())
    assert (meta["seed"], meta["iterations"]) == (7, ITERATIONS)
    # What the caller says holds for all methods; the rest is each method's own.
    for method in METHODS:
        settings = meta["hyperparameters"][method.name]
        assert settings["num_epochs"] == 1
        assert settings["anneal_iterations"] == ITERATIONS
        for name, value in method.hyperparameters.items():
            assert settings[name] == value
    assert {"textgym", "torch", "transformers", "gymnasium", "python"} <= set(meta["versions"])


def test_the_picture_opens(demo):
    with Image.open(demo[0] / "learning_curves.png") as picture:
        picture.load()
        assert picture.width > 1_000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_the_table_shows_the_results(demo, rows):
    printed = demo[1]
    assert "one seed (7)" in printed
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method.name]
        cells = next(
            [cell.strip() for cell in line.strip("│").split("│")]
            for line in printed.splitlines()
            if method.label in line and "│" in line
        )
        score = statistics.fmean(row["rollout/score_mean"] for row in mine)
        kl = statistics.fmean(row["rollout/kl"] for row in mine)
        # Two iterations: the first and the last ten are both of them.
        assert cells[1:4] == [f"{score:+.2f}", f"{score:+.2f}", f"{kl:.2f}"]
        assert cells[5] == f"{mine[-1]['time/seconds']:.0f}"


def test_samples_are_of_the_same_prompts(demo):
    blocks = (demo[0] / "samples.txt").read_text().split("\n\n")[1:]
    assert len(blocks) == 2 * len(METHODS)
    prompts = []
    for block in blocks:
        lines = block.strip().splitlines()[1:]
        prompts.append([line.split(" |")[0].split("  ", 1)[1] for line in lines])
    assert all(block == prompts[0] for block in prompts)


def test_credits_of_the_samples_sum_to_the_score_beyond_that_of_the_prompt(demo):
    beyond = []  # score minus credit, by block and prompt
    for block in (demo[0] / "samples.txt").read_text().split("\n\n")[1:]:
        lines = block.strip().splitlines()[1:]
        credits = [[float(p.split("]")[0]) for p in line.split("[")[1:]] for line in lines]
        scores = [float(line.split()[0]) for line in lines]
        beyond.append([score - sum(c) for score, c in zip(scores, credits, strict=True)])
    # The prompt's own score: the same for every method, before and after training.
    np.testing.assert_allclose(beyond, np.tile(beyond[0], (len(beyond), 1)), atol=0.06)
    assert np.ptp(beyond[0]) > 0.06


def test_samples_are_labelled_by_method(demo):
    for method in ("sparse reward", "ABC", "prefix score"):
        assert f"\nafter {method} " in demo[1]


def test_paths_are_printed_as_they_are(tiny, language_model, tmp_path):
    out = io.StringIO()
    folder = run_demo(
        tmp_path / "a [bold] demo",
        iterations=1,
        policy=language_model,
        console=Console(file=out, highlight=False),
        num_epochs=1,
        **{**tiny, "max_new_tokens": 4},
    )
    assert f"raw results: {folder}\n" in out.getvalue()


def test_plain_output_without_a_terminal(demo):
    folder, printed = demo
    assert "\x1b" not in printed
    assert "iteration   2/2" in printed
    assert str(folder) in printed


def test_output_of_another_run_is_left_alone(demo, tiny, language_model):
    with pytest.raises(InvalidArgumentError, match="output"):
        run_demo(demo[0], policy=language_model, **tiny)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("iterations", 0), ("policy", "/nowhere"), ("prompts", []), ("seed", -1)],
)
def test_bad_arguments_leave_no_folder(argument, value, tiny, language_model, tmp_path):
    arguments = {**tiny, "policy": language_model, argument: value}
    with pytest.raises(InvalidArgumentError):
        run_demo(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def run_with(scores, kl=1.0):
    return [
        {"rollout/score_mean": float(s), "rollout/kl": kl, "time/seconds": float(i)}
        for i, s in enumerate(scores)
    ]


def test_iterations_until_the_best_of_sparse():
    # Trailing means over five: sparse reaches 4 at iteration 14; the second run 4 at iteration 7.
    sparse = run_with([0] * 9 + [4] * 5 + [0] * 6)
    early = run_with([0] * 2 + [4] * 18)
    never = run_with([3.9] * 20, kl=2.0)
    summaries = summarize({"a": sparse, "b": early, "c": never})
    assert [row.iterations_to_best for row in summaries] == [14, 7, None]
    assert [row.first_score for row in summaries] == pytest.approx([0.4, 3.2, 3.9])
    assert [row.last_score for row in summaries] == pytest.approx([1.6, 4.0, 3.9])
    assert summaries[2].last_kl == 2.0
    assert summaries[0].seconds == 19.0
    console = Console(file=io.StringIO(), width=160)
    console.print(summary_table(summaries, 20, 0))
    assert "not reached" in console.file.getvalue()


@pytest.mark.parametrize(("is_faster", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_bfloat16_is_for_processors_that_are_faster_in_it(
    monkeypatch, tiny, language_model, tmp_path, is_faster, dtype
):
    monkeypatch.setattr("textgym.demo.run.is_bfloat16_faster", lambda: is_faster)
    out = io.StringIO()
    folder = run_demo(
        tmp_path / "out",
        iterations=1,
        policy=language_model,
        console=Console(file=out, width=160, highlight=False),
        num_epochs=1,
        **{**tiny, "max_new_tokens": 4},
    )
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["environment"]["dtype"] == dtype
    assert meta["hyperparameters"]["sparse"]["dtype"] == (None if dtype == "float32" else dtype)
    assert dtype in out.getvalue()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("dtype", "float16"), ("episodes_per_iteration", 32), ("log_dir", "logs")],
)
def test_arguments_that_the_demo_does_not_take(argument, value):
    with pytest.raises(InvalidArgumentError, match=argument):
        run_demo(**{argument: value})


def test_the_demo_keeps_freed_memory(monkeypatch, tiny, language_model, tmp_path):
    calls = []
    monkeypatch.setattr("textgym.demo.run.keep_freed_memory", lambda: calls.append(1))
    run_demo(
        tmp_path / "out",
        iterations=1,
        policy=language_model,
        console=Console(file=io.StringIO()),
        num_epochs=1,
        **{**tiny, "max_new_tokens": 4},
    )
    assert calls == [1]
