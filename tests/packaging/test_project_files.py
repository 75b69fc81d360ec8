"""The files at the root agree with each other, and with what a package index shows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/textgym/textgym"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def pinned_versions(file):
    """Versions by package name in a file of constraints."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def requirements(*extras):
    """The requirements of the package and of some of its extras, without textgym itself."""
    lines = PROJECT["dependencies"] + [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]
    return [r for r in map(Requirement, lines) if r.name != "textgym"]


@pytest.mark.parametrize(
    "requirement",
    requirements(*(extra for extra in PROJECT["optional-dependencies"] if extra != "dev")),
    ids=lambda requirement: requirement.name,
)
def test_the_lowest_constraints_are_the_lower_bounds(requirement):
    (bound,) = requirement.specifier
    assert bound.operator in (">=", "==")
    pinned = pinned_versions("constraints-lowest.txt")[canonicalize_name(requirement.name)]
    # A bound of 2.2 may stand for 2.2.2, where nothing older works with the other packages.
    assert (pinned + ".").startswith(bound.version + ".")


def test_every_requirement_has_an_exact_version():
    pinned = pinned_versions("constraints.txt")
    needed = {canonicalize_name(r.name) for r in requirements(*PROJECT["optional-dependencies"])}
    assert needed <= set(pinned)


def test_pre_commit_runs_the_same_ruff():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = {repo["repo"]: repo["rev"] for repo in yaml.safe_load(text)["repos"]}
    pinned = pinned_versions("constraints.txt")["ruff"]
    assert hooks["https://github.com/astral-sh/ruff-pre-commit"] == f"v{pinned}"


def test_continuous_integration_runs_every_python_that_is_claimed():
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == claimed


def test_the_citation_has_the_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def links_of_the_readme():
    inline = re.findall(r"\]\(([^)]+)\)", README)
    references = re.findall(r"^\[[^\]]+\]: (\S+)", README, re.MULTILINE)
    html = re.findall(r"(?:src|href)=\"([^\"]+)\"", README)
    return inline + references + html


def test_the_readme_has_no_relative_links():
    """A package index shows the README without the repository around it."""
    relative = [link for link in links_of_the_readme() if not link.startswith(("https://", "#"))]
    assert relative == []


def test_the_readmes_links_into_the_repository_lead_somewhere():
    raw = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
    places = (f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/", f"{raw}/main/")
    paths = [
        link.removeprefix(place)
        for link in links_of_the_readme()
        for place in places
        if link.startswith(place)
    ]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
