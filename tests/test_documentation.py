"""The documentation's code runs, its links lead somewhere, and its tables are those measured."""

from __future__ import annotations

import re
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.completion_server import CompletionServer
from tests.test_architecture import FLOORS
from textgym.agents import Agent
from textgym.benchmark.methods import METHODS
from textgym.credit import CREDIT_ASSIGNERS, POTENTIALS
from textgym.models import load_language_model, load_tokenizer

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
]


def python_blocks(page):
    found = re.findall(
        r"^( *)```python\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [textwrap.dedent(block) for _, block in found]


OUTSIDE_ROLLOUTS = ROOT / "docs" / "outside_rollouts.md"
LOOKING = ROOT / "docs" / "looking.md"
WITH_CODE = [page for page in PAGES if python_blocks(page)]


@pytest.fixture
def registries():
    """Undoes what the pages register."""
    kept = [(one, dict(one)) for one in (CREDIT_ASSIGNERS, POTENTIALS, METHODS)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize(
    "page",
    [page for page in WITH_CODE if page not in (OUTSIDE_ROLLOUTS, LOOKING)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, registries):
    monkeypatch.chdir(tmp_path)
    namespace = {"folder": "policy"}
    if page.name == "larger_policies.md":
        load_language_model("embedded").save_pretrained("policy")
        load_tokenizer("embedded").save_pretrained("policy")
    for block in python_blocks(page):
        before = namespace.get("env")
        exec(shortened(block), namespace)
        if namespace.get("env") is not before:
            without_prompt = 'start="prompt"' in block or "dense=True" in block
            play(namespace["env"], sums_to_score=not without_prompt)
    for agent in (one for one in namespace.values() if isinstance(one, Agent)):
        assert agent.history


def shortened(block):
    """The same with the least training: one iteration, or one rollout of SB3."""
    block = block.replace("learn(10_000", "learn(64").replace("=10_000", "=64")
    block = re.sub(r"n_steps=64,\s+batch_size=256", "n_steps=64", block)
    return block.replace("n_steps=64", "n_steps=4, batch_size=16")


def test_code_is_on_many_pages():
    assert len(WITH_CODE) > 20


def test_the_readmes_loop_ends_with_a_score():
    block = python_blocks(README)[0]
    namespace: dict = {}
    exec(block, namespace)
    assert namespace["terminated"]
    assert namespace["reward"] == pytest.approx(namespace["info"]["score"])


def test_the_number_of_methods_is_right():
    assert f"| {len(CREDIT_ASSIGNERS)} methods: " in README.read_text(encoding="utf-8")
    words = {15: "Fifteen"}
    home = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"{words[len(CREDIT_ASSIGNERS)]} methods on one text" in home


def test_the_page_on_credit_names_every_method():
    text = (ROOT / "docs" / "credit.md").read_text(encoding="utf-8")
    assert [name for name in CREDIT_ASSIGNERS if f"`{name}`" not in text] == []


def test_the_page_on_looking_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in python_blocks(LOOKING):
        exec(block, namespace)
    assert namespace["colour"].opacity == 0.375
    assert "credit" in namespace["info"]
    assert (tmp_path / "films" / "rl-video-episode-0.mp4").is_file()


def test_the_page_on_outside_rollouts_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server_block, engine_block = python_blocks(OUTSIDE_ROLLOUTS)
    namespace = {}
    for folder in ("models/policy", "shared/policy"):
        load_language_model("embedded").save_pretrained(tmp_path / folder)
        load_tokenizer("embedded").save_pretrained(tmp_path / folder)
    served = tmp_path / "shared/policy"
    with CompletionServer(load_language_model(served), served) as server:
        block = server_block.replace("http://localhost:8000", server.url)
        block = block.replace('"/', f'"{tmp_path}/').replace("num_envs=16", "num_envs=4")
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            exec(_short(block), namespace)
            through_server = namespace["agent"].history
            exec(_short(engine_block), namespace)
    for row in through_server + namespace["agent"].history:
        assert row["rollout/sampler_gap"] < 1e-4


def _short(block):
    """The same with one iteration of four episodes."""
    block = block.replace("sampler=sampler)", "sampler=sampler, episodes_per_iteration=4)")
    block = block.replace("sampler=Generate())", "sampler=Generate(), episodes_per_iteration=4)")
    return block.replace("=10_000", "=1")


def play(env, sums_to_score):
    """Play an episode, and hold the sum of what it pays against its score where both agree."""
    env.reset(seed=0, options={"max_new_tokens": 3})
    env.action_space.seed(0)
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    assert np.isfinite(info["score"])
    if "reference_logprob" in info or not sums_to_score:
        return
    if "credit" in info:
        np.testing.assert_allclose(info["credit"].sum(), info["score"], atol=1e-4)
    if "shaping" in info:
        np.testing.assert_allclose(info["shaped_return"], info["score"], atol=1e-4)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_exists(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def table_rows(path, first_column):
    """Cells of the Markdown tables in a file, by the first cell of each row."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = next(i for i, row in enumerate(rows) if row[0] == first_column)
    return {row[0]: row[1:] for row in rows[start:]}


def test_the_figures_on_the_page_about_credit_are_those_that_were_measured():
    measured = table_rows(ROOT / "benchmarks/results/credit_fidelity/table.md", "method")
    shown = table_rows(ROOT / "docs" / "credit.md", "method")
    columns = (0, 1, 2, 3, 6, 9)  # of the measured table, in the order of the page's
    compared = 0
    for method, cells in shown.items():
        name = method.removesuffix(" (policy's attention)")
        if name == "method":
            continue
        for cell, column in zip(cells, columns, strict=True):
            number = float(measured[name][column].split(" ")[0])
            digits = len(cell.partition(".")[2])
            assert float(cell.replace("−", "-")) == pytest.approx(number, abs=0.51 * 10**-digits)
            compared += 1
    assert compared > 50


@pytest.mark.parametrize(
    ("page", "results", "first_line", "num_lines"),
    [
        ("agents.md", "agents/table.md", "| agent | environment steps |", 12),
        ("agents/ppo.md", "tuning/table.md", "| variant | criterion |", 24),
        ("agents/cleanrl.md", "cleanrl/table.md", "| actions and reward |", 11),
        ("agents/cleanrl.md", "cleanrl/table.md", "| flags changed |", 8),
        ("findings.md", "suites/main/table.md", "| method | seeds | score |", 14),
        ("findings.md", "suites/main/table.md", "| method | KL 5 |", 14),
        ("findings.md", "suites/main/table.md", "| method | iterations | score |", 38),
        ("findings.md", "suites/published/table.md", "| method | seeds | score |", 13),
        ("findings.md", "suites/published/table.md", "| method | KL at the end |", 13),
        ("findings.md", "suites/table.md#As tuned", "| method | authors, ratio |", 6),
        ("findings.md", "suites/table.md#As tuned", "Iterations of ABC to the best score", 1),
        ("findings.md", "suites/table.md#As tuned", "| ABC minus | seeds |", 7),
        ("findings.md", "suites/table.md#As published", "| method | authors, ratio |", 6),
        ("findings.md", "suites/table.md#As published", "Iterations of ABC to the best score", 1),
        ("findings.md", "suites/table.md#As published", "| ABC minus | seeds |", 7),
        ("findings.md", "suites/table.md#By β", "| β | authors, ratio |", 13),
        ("findings.md", "suites/table.md#By β", "Slope of the score against β", 1),
        ("findings.md", "suites/frontier/table.md", "| score of 512 fresh", 7),
        ("findings.md", "suites/frontier/table.md", "| gold of 512 fresh", 7),
        ("findings.md", "suites/table.md#By length", "| tokens | method |", 22),
        ("findings.md", "suites/table.md#140-160", "| ABC minus |", 4),
        ("findings.md", "suites/length/table.md#20-30", "| method | seeds | score |", 7),
        ("findings.md", "suites/length/table.md#40-60", "| method | seeds | score |", 7),
        ("findings.md", "suites/length/table.md#40-60", "| method | KL 8 |", 7),
        ("findings.md", "suites/table.md#40-60", "| ABC minus |", 4),
        ("findings.md", "suites/length/table.md#140-160", "| method | seeds | score |", 7),
        ("findings.md", "suites/length/table.md#140-160", "| method | KL 14 |", 7),
        ("outside_rollouts.md", "mismatch/table.md", "| cause | KL |", 13),
        ("reliability.md", "bad_input/table.md", "| bad input | cases |", 14),
        ("reliability.md", "kills/table.md", "| agent | kills |", 6),
        ("reliability.md", "soak/table.md", "| soak |", 9),
        ("reward_models.md", "architectures/table.md", "| what is read |", 8),
        ("reward_models.md", "pairs/table.md", "| policy + reward model |", 7),
        ("reward_models.md", "pairs_long/table.md", "| policy + reward model |", 7),
        ("reward_models.md", "prefixes/table.md", "| share of the text |", 12),
        ("learning.md", "tuning/table.md", "| method | seeds | score |", 11),
        ("learning.md", "tuning/table.md", "| method | to +1 |", 11),
        ("learning.md", "tuning/table.md#medium: search", "| method | setting |", 18),
        ("learning.md", "tuning/table.md#medium: learning rates", "| method | setting |", 18),
        ("learning.md", "tuning/table.md#long: search", "| method | setting |", 18),
        ("learning.md", "tuning/table.md#planted: search", "| method | setting |", 24),
        ("learning.md", "tuning/table.md#long: learning rates", "| method | setting |", 18),
        ("learning.md", "learning/table.md", "| condition | first |", 9),
        ("learning.md", "learning_planted/table.md", "| condition | first |", 9),
        ("scale.md", "scale/table.md", "| all weights: policy |", 12),
        ("scale.md", "scale/table.md", "| LoRA: policy |", 12),
        ("scale.md", "scale/table.md", "| policy | TFLOP", 12),
        ("scale.md", "processes/table.md", "|  | seeds |", 5),
        ("scale.md", "scale/table.md", "| iteration of |", 9),
        ("scale.md", "scale/table.md", "| memory of |", 9),
        ("scale.md", "scale/table.md", "| minibatch of |", 8),
        ("../examples/zoo/README.md", "zoo/table.md", "| algorithm |", 5),
        ("../examples/zoo/README.md", "zoo/table.md", "| search |", 5),
        ("performance.md", "precision/table.md", "| condition | arithmetic |", 8),
        ("performance.md", "demo_speed/table.md", "| method |", 6),
    ],
)
def test_a_table_of_results_is_shown_as_it_was_measured(page, results, first_line, num_lines):
    path, _, section = results.partition("#")
    text = (ROOT / "benchmarks/results" / path).read_text(encoding="utf-8")
    start = text.index(f"# {section}\n") if section else 0
    measured = text[text.index(first_line, start) :].split("\n\n")[0].strip()
    assert len(measured.splitlines()) == num_lines
    shown = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert f"\n\n{measured}\n\n" in shown + "\n"


def test_the_page_on_architecture_shows_the_floors_that_are_tested():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    shown = {int(floor): re.findall(r"`([\w.]+)`", rooms) for floor, rooms in rows}
    assert shown == dict(enumerate(FLOORS, start=1))
