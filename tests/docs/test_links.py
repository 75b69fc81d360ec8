"""Links lead somewhere, on GitHub and on the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from making import links

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
GITHUB = "https://github.com/textgym/textgym"


def anchors(page):
    """The ids that GitHub gives to the headings of a page."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_anchors_of_linked_pages_exist(page):
    linked = re.findall(
        r"\]\((?!https?://)([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")
    )
    missing = [
        (file, anchor)
        for file, anchor in linked
        if (file.endswith(".md") or not file)
        and anchor not in anchors(page.parent / file if file else page)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_links_out_of_the_folder_are_made_right_for_the_site(page):
    file = page.relative_to(ROOT / "docs").as_posix()
    text = links.for_site(page.read_text(encoding="utf-8"), file, ROOT, lambda path: path.name)
    outside = [
        target
        for target in links.targets(text)
        if not (page.parent / target.partition("#")[0]).resolve().is_relative_to(ROOT / "docs")
    ]
    assert outside == []


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "ppo.py").write_text(
        "X = 1\n\n\nclass PPO:\n    def step(self):\n        pass\n"
    )
    (tmp_path / "curve.png").touch()
    return tmp_path


def test_a_name_in_a_file_becomes_its_line(checkout):
    text = "[a](../../agents/ppo.py#PPO.step) [b](../../agents/ppo.py#PPO) [c](../../agents)"
    made = links.for_site(text, "agents/ppo.md", checkout)
    assert f"[a]({GITHUB}/blob/main/agents/ppo.py#L5)" in made
    assert f"[b]({GITHUB}/blob/main/agents/ppo.py#L4)" in made
    assert f"[c]({GITHUB}/tree/main/agents)" in made


def test_a_picture_is_taken_along(checkout):
    made = links.for_site(
        "![x](../../curve.png)", "agents/ppo.md", checkout, lambda path: "p/curve.png"
    )
    assert made == "![x](../p/curve.png)"


def test_links_between_pages_stay(checkout):
    text = "[a](../agents.md#x) [b](https://example.org/../x)"
    assert links.for_site(text, "agents/ppo.md", checkout) == text


def test_a_notebook_is_a_page_except_where_it_is_downloaded():
    text = "[a](tutorials/b.ipynb) [Download this page as a notebook](b.ipynb)"
    made = "[a](tutorials/b.md) [Download this page as a notebook](b.ipynb)"
    assert links.to_pages(text) == made


@pytest.mark.parametrize("target", ["../nothing.py", "../agents/ppo.py#nothing", "../../above.py"])
def test_a_link_that_leads_nowhere_is_an_error(checkout, target):
    with pytest.raises(links.BrokenLinkError):
        links.for_site(f"[a]({target})", "page.md", checkout)
