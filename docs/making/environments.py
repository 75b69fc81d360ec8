"""A page per environment id, from the docstring of what makes it and from the environment."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

from making.docstrings import Docstring, markdown
from textgym.registration import ENVIRONMENTS

__all__ = ["page_name", "pages"]

_INTRODUCTIONS = {
    "ABC-RLHF-v0": "The environment to start with: completions of 8 to 16 tokens.",
    "ABC-RLHF-Long-v0": "`ABC-RLHF-v0` with completions of exactly 128 tokens, so the score comes "
    "late.",
    "ABC-RLHF-Features-v0": "Feature vectors as observations and 4 likely tokens as actions, for "
    "small agents and scripts that only take an id.",
    "ABC-RLHF-Features-Dense-v0": "`ABC-RLHF-Features-v0` with the score paid token by token.",
    "ABC-RLHF-Planted-v0": "A known program scores the text, so the best score and the true "
    "contribution of every token are known.",
}
_LIKELY = "its tokens were drawn from the four likeliest ones"
_TOKENS = {"ABC-RLHF-Planted-v0": "its tokens were drawn at random"}
_ORDER = (
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Information",
    "Arguments",
    "Version History",
)


def page_name(env_id: str) -> str:
    """The file of an environment's page, below ``docs/``."""
    return f"environments/{env_id.lower()}.md"


def pages() -> dict[str, str]:
    """All pages, by file below ``docs/``: an overview, and one for each id."""
    return {"environments/index.md": _overview()} | {
        page_name(env_id): _page(env_id) for env_id in ENVIRONMENTS
    }


def _overview() -> str:
    parts = [
        "# Environments",
        "Every environment writes text, one token per step. `import textgym` registers the ids; "
        "`gym.make` makes one environment and `gym.make_vec` a batch that steps together. For "
        "scripts that only take an id, `textgym:ABC-RLHF-v0` imports textgym by itself.",
        "```python\nimport gymnasium as gym\nimport textgym\n\n"
        'env = gym.make("ABC-RLHF-v0")\n'
        'envs = gym.make_vec("ABC-RLHF-v0", num_envs=16)\n```',
    ]
    rows = ["| id | actions | what it is for |", "|---|---|---|"]
    for env_id in ENVIRONMENTS:
        env = gym.make(env_id)
        file = page_name(env_id).removeprefix("environments/")
        rows.append(f"| [`{env_id}`]({file}) | `{env.action_space}` | {_INTRODUCTIONS[env_id]} |")
        env.close()
    parts.append("\n".join(rows))
    pictures = [
        f"[![An episode of {env_id}](../images/environments/{env_id.lower()}.png)]"
        f"({page_name(env_id).removeprefix('environments/')})"
        for env_id in ENVIRONMENTS
    ]
    parts += ['<div class="pictures" markdown>', *pictures, "</div>"]
    parts.append(
        "Colours show the credit that ABC gives each token once the episode has ended. "
        "[Wrappers](../wrappers.md) change what an agent sees, does or is paid."
    )
    return "\n\n".join(parts) + "\n"


def _page(env_id: str) -> str:
    registered = ENVIRONMENTS[env_id]
    made_by, defaults = _load(registered["entry_point"]), registered.get("kwargs", {})
    doc = Docstring.of(made_by)
    assert set(doc.sections) == set(_ORDER), (env_id, set(_ORDER) ^ set(doc.sections))
    env = gym.make(env_id)
    vector = registered["vector_entry_point"].replace(":", ".")
    rows = [
        ("Action space", f"`{env.action_space}`"),
        ("Observation space", f"`{env.observation_space}`"),
        ("One environment", f'`gym.make("{env_id}")`, made by `{_name(registered)}`'),
        ("A batch", f'`gym.make_vec("{env_id}", num_envs=16)`, made by `{vector}`'),
    ]
    env.close()
    if defaults:
        changed = ", ".join(f"`{name}={value!r}`" for name, value in defaults.items())
        rows.append(("Differs from `ABC-RLHF-v0` by", changed))
    parts = [
        f"# {env_id}",
        _INTRODUCTIONS[env_id],
        f"![An episode of {env_id}, with the credit of each token]"
        f"(../images/environments/{env_id.lower()}.png)",
        f"*A seeded episode, chosen for its score: {_TOKENS.get(env_id, _LIKELY)}. Colours show "
        "the credit that ABC gives each token.*",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]),
    ]
    for heading in _ORDER:
        parts += [f"## {heading}", markdown(doc.sections[heading])]
        if heading == "Arguments":
            parts.append(_arguments(doc, defaults))
    return "\n\n".join(parts) + "\n"


def _arguments(doc: Docstring, defaults: dict[str, Any]) -> str:
    rows = ["| argument | default | meaning |", "|---|---|---|"]
    for one in doc.arguments:
        default = f"`{defaults[one.name]!r}`" if one.name in defaults else one.default
        rows.append(f"| `{one.name}` | {default} | {markdown(one.meaning)} |")
    return "\n".join(rows)


def _name(registered: dict[str, Any]) -> str:
    return str(registered["entry_point"]).replace(":", ".")


def _load(entry_point: str) -> Any:
    module, _, name = entry_point.partition(":")
    return getattr(importlib.import_module(module), name)
