"""`textgym report`: what the page says about runs is what their files say."""

from __future__ import annotations

import base64
import json
import re
import shutil

import pytest

from tests.cli.commands import ONE_LINE, SMALL, flags
from tests.rendering.test_html import Elements
from textgym.cli import main
from textgym.cli.run_data import differences, grouped, read_run


@pytest.fixture(scope="module")
def runs(trained, models, tmp_path_factory):
    """The trained run with seed 3, another seed without undo, and another credit."""
    folder = tmp_path_factory.mktemp("several")
    command = ["train", *flags(models), *SMALL]
    other_seed = ["--seed", "4", "--no-undo", "--output", str(folder / "other_seed")]
    assert main([*command, *other_seed]) == 0
    assert main([*command, "--credit", "random", "--output", str(folder / "other_credit")]) == 0
    return [trained, folder / "other_seed", folder / "other_credit"]


def page_of(runs, tmp_path):
    path = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--output", str(path)]) == 0
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The page of all three runs."""
    return page_of(runs, tmp_path_factory.mktemp("page"))


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tables(page):
    """The rows of each table, as lists of cells."""
    found = []
    for one in Elements(page).found:
        if one["tag"] == "table":
            found.append([])
        elif one["tag"] == "tr":
            found[-1].append([])
        elif one["tag"] in ("td", "th"):
            found[-1][-1].append(one["text"])
    return found


def pictures(page):
    """The SVG of each figure, by its description."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)">', page)
    return {alt: base64.b64decode(data).decode() for alt, data in found}


def test_the_results_are_those_of_the_log(runs, page):
    results = tables(page)[0]
    assert results[0] == [
        *("run", "seed", "iterations", "checkpoint", "tokens", "time"),
        *("score, first", "score, last", "KL"),
    ]
    assert len(results) == 4
    for cells, run in zip(results[1:], runs, strict=True):
        rows = logged(run)
        mean = sum(row["rollout/score_mean"] for row in rows[-10:]) / len(rows)
        assert run.name in cells[0]
        tokens = f"{rows[-1]['time/total_timesteps']} of 17"
        assert cells[2:5] == [str(len(rows)), str(len(rows)), tokens]
        assert cells[7] == f"{mean:+.2f}"


def test_runs_that_differ_in_the_seed_only_are_one_group(runs):
    groups = grouped([read_run(run) for run in runs])
    assert [[run.folder for run in group.runs] for group in groups] == [runs[:2], runs[2:]]
    assert [group.name for group in groups] == ["credit uniform (2 runs)", "credit random"]
    assert differences(groups) == ["credit"]


def test_the_settings_in_which_runs_differ_are_marked(page):
    (row,) = re.findall(r'<tr class="differs">(.*?)</tr>', page)
    assert re.findall(r">([^<]+)<", row) == ["credit", "uniform", "random"]
    shared = dict(row[:2] for row in tables(page)[2])
    assert (shared["num_epochs"], shared["kl_target"]) == ("1", "none")
    assert "seed" not in shared


def test_the_page_has_curves_and_the_frontier(page):
    figures = pictures(page)
    curves, frontier = figures
    assert "mean score" in curves
    assert "value loss" in curves
    assert frontier == "Score against KL"
    assert all(svg.rstrip().endswith("</svg>") for svg in figures.values())


def test_completions_are_shown_with_their_credit(trained, tmp_path):
    page = page_of([trained], tmp_path)
    kept = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    found = [float(x) for x in re.findall(r"credit ([+-]\d+\.\d{4}), share", page)]
    prompts = list(dict.fromkeys(row["prompt"] for row in kept))
    kept.sort(key=lambda row: prompts.index(row["prompt"]))  # stable: by iteration within each
    expected = [credit for row in kept for credit in row["credit"]]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_run_that_is_under_way_is_shown_as_far_as_it_is(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[1][:20])  # the second row is being written
    assert tables(page_of([folder], tmp_path))[0][1][2] == "1"
    log.write_text("")
    page = page_of([folder], tmp_path)
    assert tables(page)[0][1][2] == "0"
    assert not pictures(page)


def test_a_run_that_is_named_twice_is_one_run(trained, tmp_path, monkeypatch):
    """Two would have an interval, and it would be too narrow."""
    monkeypatch.chdir(trained.parent)
    page = page_of([trained, trained.name, f"{trained.name}/../{trained.name}"], tmp_path)
    assert len(tables(page)[0]) == 2  # with its head
    assert "Student" not in page


def test_a_run_that_has_only_begun_does_not_change_how_others_are_drawn(trained, tmp_path):
    long, begun = tmp_path / "long", tmp_path / "begun"
    for folder in (long, begun):
        shutil.copytree(trained, folder)
    rows = logged(trained)[:1] * 8
    (long / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (begun / "metrics.jsonl").write_text("")
    config = json.loads((trained / "config.json").read_text()) | {"seed": 99}
    (begun / "config.json").write_text(json.dumps(config))
    assert "Strong lines: means of the last 2 iterations" in page_of([long, begun], tmp_path)


def test_the_folder_of_an_agent_without_the_command_line_will_do(trained, tmp_path):
    folder = tmp_path / "<b>run"
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(trained / name, folder)
    page = page_of([folder], tmp_path)
    assert "&lt;b&gt;run" in page
    assert "has kept no samples" in page


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("metrics.jsonl", None, "has no metrics.jsonl"),
        ("config.json", None, "has no config.json"),
        ("metrics.jsonl", "words\n", "its metrics.jsonl is damaged"),
        ("metrics.jsonl", "{}\n", "its metrics.jsonl is damaged"),
        ("config.json", "[]", "its config.json is damaged"),
        ("environment.json", "{", "its environment.json is damaged"),
        ("samples.jsonl", "{}\n", "its samples.jsonl is damaged"),
    ],
)
def test_damaged_runs_are_one_clear_line(name, content, part, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert error.startswith("textgym: runs=")
    assert part in error
    assert not (tmp_path / "page.html").exists()


def test_more_kinds_of_runs_than_can_be_told_apart(trained, tmp_path, capsys):
    folders = []
    for n in range(9):
        folders.append(tmp_path / str(n))
        shutil.copytree(trained, folders[-1])
        config = json.loads((trained / "config.json").read_text()) | {"learning_rate": 1 / (n + 1)}
        (folders[-1] / "config.json").write_text(json.dumps(config))
    assert main(["report", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 2
    assert "only 8 can be told apart" in capsys.readouterr().err


def test_a_run_of_few_iterations_is_drawn_as_it_is(trained, tmp_path):
    assert len(logged(trained)) < 8
    assert "Lines: single iterations." in page_of([trained], tmp_path)
