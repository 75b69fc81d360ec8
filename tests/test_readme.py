"""The code in the README runs."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    namespace: dict = {}
    for block in blocks:
        exec(block.replace("total_timesteps=10_000", "total_timesteps=100"), namespace)
    assert len(namespace["agent"].history) == 1
    assert (tmp_path / "positive_reviews.pt").is_file()
    observation, _ = namespace["env"].reset(seed=0)
    assert observation in namespace["env"].observation_space


def test_the_picture_and_every_linked_file_exist():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(targets) >= 8
    assert [target for target in targets if not (README.parent / target).exists()] == []
