"""The pages that come from the code are those that the code makes today."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import generate
import gymnasium as gym
import pytest
import yaml
from making import blocks, docstrings, gallery, reference

from textgym.agents import PPO, RLOO, PPOConfig
from textgym.cli import _COMMANDS as COMMANDS
from textgym.cli import main
from textgym.credit import CREDIT_ASSIGNERS, POTENTIALS
from textgym.registration import ENVIRONMENTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NUMBER = re.compile(r"[+-]?\d+\.\d+")
REMEDY = "make the pages anew: python docs/generate.py"


def committed(file):
    return (DOCS / file).read_text(encoding="utf-8")


def assert_same_but_for_rounding(made, shown):
    """Texts are equal, and numbers up to what another processor or version may round."""
    assert NUMBER.sub("#", made) == NUMBER.sub("#", shown), REMEDY
    values, shown_values = ([float(n) for n in NUMBER.findall(text)] for text in (made, shown))
    assert values == pytest.approx(shown_values, abs=0.03), REMEDY


def test_pages_on_environments_wrappers_and_modules_are_those_of_the_code():
    stale = [file for file, text in generate.pages().items() if committed(file) != text]
    assert stale == [], REMEDY


def test_the_gallery_shows_what_the_methods_compute():
    assert_same_but_for_rounding(gallery.page(), committed("gallery.md"))


def test_tables_within_pages_are_those_of_the_code():
    pages = blocks.pages()
    assert {"agents.md", "agents/ppo.md", "agents/rloo.md", "agents/grpo.md", "index.md"} == set(
        pages
    )
    for file, text in pages.items():
        assert_same_but_for_rounding(text, committed(file))


def test_the_gallery_has_every_method_and_potential():
    headings = re.findall(r"^### (?:Potential )?(\S+)$", committed("gallery.md"), re.MULTILINE)
    assert headings == [*CREDIT_ASSIGNERS, *POTENTIALS]


def test_the_numbers_of_a_row_sum_to_the_score():
    text = committed("gallery.md")
    score = float(re.search(r"reward model:\s+([+-]\d+\.\d+)", text)[1])
    rows = re.findall(r'<td><div class="credit-text">(.*?)</div>', text)
    sums = [sum(map(float, re.findall(r'title="(.*?)"', row))) for row in rows]
    assert sums == pytest.approx([score] * len(CREDIT_ASSIGNERS), abs=0.1)


def test_every_environment_has_a_page_with_its_spaces():
    for env_id in ENVIRONMENTS:
        env = gym.make(env_id)
        text = committed(f"environments/{env_id.lower()}.md")
        assert f"`{env.action_space}`" in text
        assert f"`{env.observation_space}`" in text
        assert (DOCS / f"images/environments/{env_id.lower()}.png").is_file()


@pytest.mark.parametrize("agent", [PPO, RLOO])
def test_every_scalar_that_an_agent_logs_is_explained(agent, tmp_path):
    envs = gym.make_vec("ABC-RLHF-v0", 4, autoreset_mode="Disabled")
    trained = agent("embedded", envs, episodes_per_iteration=4, minibatch_size=4, log_dir=tmp_path)
    trained.learn(total_timesteps=1)
    page = committed(f"agents/{agent.name.lower()}.md")
    assert [name for name in trained.history[0] if f"| `{name}` |" not in page] == []


def test_every_public_name_is_in_the_reference():
    for module in reference.MODULES:
        text = committed(reference.page_name(module))
        names = reference.public_names(module)
        shown = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", text, re.MULTILINE)
        constants = re.findall(r"^- `(\w+) = ", text, re.MULTILINE)
        assert sorted([*shown, *constants]) == sorted(set(names) - {"__version__"})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_a_command_are_those_that_its_help_lists(command, capsys):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    listed = set(re.findall(r"^[│ ] (?:-h, )?(--[a-z][a-z-]+)", printed, re.MULTILINE))
    assert "--help" in listed
    section = committed("command_line.md").split(f"## textgym {command}\n")[1].split("\n## ")[0]
    shown = set(re.findall(r"^\| `(--[a-z-]+)`", section, re.MULTILINE))
    assert shown <= listed
    missing = listed - shown - {"--help"}
    if command == "train":  # the page names those of PPO, and does not list them again
        names = {field.name.replace("_", "-") for field in dataclasses.fields(PPOConfig)}
        missing -= {f"--{name}" for name in names} | {"--output"}
    assert missing == set()


def test_every_page_is_in_the_navigation():
    def files(nav):
        if isinstance(nav, str):
            return [nav]
        return [
            file for one in (nav.values() if isinstance(nav, dict) else nav) for file in files(one)
        ]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages - set(files(nav)) == set()


def test_arguments_and_sections_of_a_docstring_are_found():
    def documented():
        """Do it.

        Once.

        ## Rewards

        None.

        Args:
            first: A number
                of things. Default: `3`.
            second: Another.
        """

    doc = docstrings.Docstring.of(documented)
    assert (doc.summary, doc.body, doc.sections) == ("Do it.", "Once.", {"Rewards": "None."})
    assert [(one.name, one.meaning, one.default) for one in doc.arguments] == [
        ("first", "A number of things.", "`3`"),
        ("second", "Another.", ""),
    ]
