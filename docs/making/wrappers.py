"""The page on wrappers: what each of them changes, found by trying it."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym

from making.docstrings import Docstring, markdown
from textgym import wrappers
from textgym.wrappers import vector

__all__ = ["page"]

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "TopKActions": {"k": 16},
    "PotentialShaping": {"potential": "prefix-score"},
    "ReferenceLogProb": {"coef": 0.05},
}
"""What those take that cannot be made without arguments, and what makes a clear example."""

_OPENING = """\
# Wrappers

Wrappers change what an agent sees, does or is paid, as in Gymnasium. Each one has a single form in
`textgym.wrappers` and a batched form of the same name in `textgym.wrappers.vector`, for what
`gym.make_vec` returns.

```python
import gymnasium as gym
import textgym
from textgym.wrappers import AttentionShaping, LanguageModelFeatures, ReferenceLogProb, TopKActions

env = gym.make("ABC-RLHF-v0")
env = TopKActions(LanguageModelFeatures(env), k=16)
env = AttentionShaping(ReferenceLogProb(env, coef=0.05))
```

| wrapper | what it does | changes |
|---|---|---|
"""

_CLOSING = """
- The wrappers cache the keys and values of what they have read, so a step costs one token.
  Wrappers of the same environment share the forward pass of the same language model.
- If wrappers are in an order that cannot work, an error explains why.
- `info["credit"]` is float32 of shape (num_steps,). In a vector environment, `infos["credit"]`
  has the shape (num_envs, max_new_tokens), with zeros after an episode's last token. The mask
  `_credit` marks the rows whose episode ended.
- `ReferenceLogProb` together with an entropy bonus with the same coefficient is the KL penalty.
- Gymnasium's own wrappers work too. [Reliability](reliability.md) says how that is tested.

The [API reference](reference/wrappers.md) documents each of them.
"""


def page() -> str:
    """The page in Markdown."""
    assert wrappers.__all__ == vector.__all__
    rows = [f"| `{name}` | {_summary(name)} | {_changes(name)} |" for name in wrappers.__all__]
    return _OPENING + "\n".join(rows) + "\n" + _CLOSING


def _summary(name: str) -> str:
    return markdown(Docstring.of(getattr(wrappers, name)).summary).replace("|", "\\|")


def _changes(name: str) -> str:
    """Spaces, rewards and infos that differ from those of the bare environment, as it was tried."""
    arguments = _ARGUMENTS.get(name, {})
    required = [
        parameter.name
        for parameter in inspect.signature(getattr(wrappers, name)).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "env"
    ]
    assert set(required) <= set(arguments), name
    bare, wrapped = gym.make("ABC-RLHF-v0"), gym.make("ABC-RLHF-v0")
    wrapped = getattr(wrappers, name)(wrapped, **arguments)
    changes = []
    if wrapped.observation_space != bare.observation_space:
        changes.append("observation")
    if wrapped.action_space != bare.action_space:
        changes.append("action")
    rewards, keys = _episode(bare)
    new_rewards, new_keys = _episode(wrapped)
    if "action" not in changes and rewards != new_rewards:
        changes.append("reward")
    added = ", ".join(f"`{key}`" for key in sorted(new_keys - keys))
    return ", ".join(changes) + ("; " if changes and added else "") + (added and f"info: {added}")


def _episode(env: gym.Env) -> tuple[list[float], set[str]]:
    """Rewards of a seeded episode of the action 5, and the keys of its infos."""
    _, info = env.reset(seed=0, options={"prompt": "The film", "max_new_tokens": 8})
    rewards, keys, done = [], set(info), False
    while not done:
        _, reward, done, _, info = env.step(5)
        rewards.append(float(reward))
        keys |= set(info)
    return rewards, keys
