"""The code in the documentation runs, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from textgym.credit import CREDIT_ASSIGNERS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README)
    assert len(blocks) == 2
    namespace: dict = {}
    for block in blocks:
        exec(block.replace("total_timesteps=10_000", "total_timesteps=100"), namespace)
    assert len(namespace["agent"].history) == 1
    assert (tmp_path / "positive_reviews.pt").is_file()
    observation, _ = namespace["env"].reset(seed=0)
    assert observation in namespace["env"].observation_space


def test_the_page_on_credit_runs_and_names_every_method(monkeypatch):
    page = ROOT / "docs" / "credit.md"
    blocks = python_blocks(page)
    assert len(blocks) == 4
    namespace: dict = {}
    before = dict(CREDIT_ASSIGNERS)
    try:
        for number, block in enumerate(blocks):
            exec(block, namespace)
            if number in (0, 2, 3):  # these end with an environment of their own
                play(namespace["env"])
    finally:
        CREDIT_ASSIGNERS.clear()
        CREDIT_ASSIGNERS.update(before)
    text = page.read_text(encoding="utf-8")
    assert [name for name in CREDIT_ASSIGNERS if f"`{name}`" not in text] == []


def play(env):
    env.reset(seed=0, options={"max_new_tokens": 3})
    for token in (300, 400, 500):
        *_, info = env.step(token)
    total = info["credit"].sum() if "credit" in info else info["shaped_return"]
    np.testing.assert_allclose(total, info["score"], atol=1e-4)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_file_exists(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
