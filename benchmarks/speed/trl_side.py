"""trl's side of the comparison: trl 0.7.4 (2023) in a process and an environment of its own.

The environment comes from ``make trl-env``, or is the folder that ``TRL_VENV`` names. The process
runs trl_ppo.py and waits while the other side is at work. Both sides train the same weights with
the same hyperparameters on prompts of the same environment, and are paid by the same reward model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from speed.textgym_side import BOTH_SIDES, NUM_ENVS, make_envs
from textgym.agents import PPOConfig
from textgym.models import Completions, load_language_model, load_reward_model
from textgym.models.loading import EMBEDDED_FOLDER

__all__ = ["Trl", "check", "draw_prompts", "has_trl"]

TOLERANCE = 1e-4
"""How far logits and scores of the two sides may be apart."""

_ROOT = Path(__file__).parents[2]
_SCRIPT = Path(__file__).with_name("trl_ppo.py")


class Trl:
    """trl's PPO, in a process that starts with it and ends with its ``with`` block.

    Args:
        prompts: Token ids, ``episodes`` for each iteration.
        minibatch_size: Episodes per gradient step.
        learning_rate: Of Adam.
        episodes: Of an iteration.
        **settings: Other fields of the settings of trl_ppo.py.
    """

    def __init__(
        self,
        prompts: list[list[int]],
        minibatch_size: int = 1,
        learning_rate: float = BOTH_SIDES["learning_rate"],
        episodes: int = NUM_ENVS,
        **settings: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name, "errors.txt")
        path = Path(self._folder.name, "settings.json")
        models = {name: str(EMBEDDED_FOLDER / name) for name in ("language_model", "reward_model")}
        ppo = {
            "batch_size": episodes,
            "mini_batch_size": minibatch_size,
            "learning_rate": learning_rate,
            "ppo_epochs": PPOConfig.num_epochs,
            "gamma": PPOConfig.gamma,
            "lam": PPOConfig.gae_lambda,
            "cliprange": PPOConfig.clip_coef,
            "cliprange_value": PPOConfig.vf_clip_coef,
            "vf_coef": PPOConfig.vf_coef,
            "init_kl_coef": BOTH_SIDES["kl_coef"],
            "target": BOTH_SIDES["kl_target"],
            "horizon": PPOConfig.kl_horizon,
        }
        path.write_text(json.dumps({**models, "prompts": prompts, "ppo": ppo, **settings}))
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [_trl_python(), "-W", "ignore", _SCRIPT, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._versions: dict[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._input.close()  # it ends with its input
        self._output.close()
        self._process.wait()
        self._folder.cleanup()

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages on trl's side; waits until it is ready."""
        if self._versions is None:
            self._versions = self._read()["ready"]
        return self._versions

    def run(self, iterations: int) -> list[dict[str, float]]:
        """Train on; a row per iteration, as textgym's side gives it.

        The seconds of its parts stand under ``generate``, ``reward`` and ``step``.
        """
        self._ask(iterations=iterations)
        rows = [self._read() for _ in range(iterations)]
        return [{**row, "seconds": row["generate"] + row["reward"] + row["step"]} for row in rows]

    def read(self, texts: Completions) -> tuple[np.ndarray, np.ndarray]:
        """Logits (batch, num_tokens, vocab) of the policy, and scores (batch,), of some texts."""
        paths = [str(Path(self._folder.name, name)) for name in ("texts.npz", "read.npz")]
        ids, mask = texts.input_ids.numpy(), texts.attention_mask.long().numpy()
        np.savez(paths[0], input_ids=ids, attention_mask=mask)
        self._ask(check=paths[0], output=paths[1])
        self._read()
        with np.load(paths[1]) as arrays:
            return arrays["logits"], arrays["scores"]

    def _ask(self, **request: Any) -> None:
        _ = self.versions
        print(json.dumps(request), file=self._input, flush=True)

    def _read(self) -> dict[str, Any]:
        line = self._output.readline()
        if not line:
            raise RuntimeError(f"trl's side stopped:\n{self._errors.read_text()}")
        return json.loads(line)


def _trl_python() -> Path:
    return Path(os.environ.get("TRL_VENV", _ROOT / ".venv-trl")) / "bin" / "python"


def has_trl() -> bool:
    """Whether trl can be run; says so if not."""
    if _trl_python().exists():
        return True
    print("No comparison with trl: its environment is missing, run `make trl-env`", file=sys.stderr)
    return False


def draw_prompts(number: int, seed: int) -> list[list[int]]:
    """Prompts as the environment draws them."""
    envs = make_envs(1)
    prompts = []
    for seed_of_prompt in np.random.SeedSequence(seed).generate_state(number).tolist():
        observations, _ = envs.reset(seed=[seed_of_prompt])  # type: ignore[arg-type]
        mask = observations["attention_mask"][0].astype(bool)
        prompts.append(observations["input_ids"][0][mask].tolist())
    return prompts


def check(trl: Trl) -> float:
    """The largest difference between the two sides' logits and scores of ragged texts.

    Raises:
        RuntimeError: If it is above :data:`TOLERANCE`: they would not train the same models.
    """
    lengths = torch.tensor([24, 20, 9, 3])
    mask = torch.arange(24) < lengths[:, None]  # (4, 24)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 4096, mask.shape, generator=generator) * mask
    texts = Completions(ids, mask, mask)
    with torch.no_grad():
        model = load_language_model("embedded")
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    scores = load_reward_model("embedded").read(texts).score
    their_logits, their_scores = map(torch.from_numpy, trl.read(texts))
    difference = max(
        (logits - their_logits)[mask].abs().max().item(), (scores - their_scores).abs().max().item()
    )
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the models of the two sides differ by {difference}")
    return difference
