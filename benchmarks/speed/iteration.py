"""Part 3: an iteration of PPO, and a race to a score, against trl 0.7.4 (2023).

trl runs in its own environment (``make trl-env``, or the folder that ``TRL_VENV`` names) and in a
process of its own, which waits while the other side is at work: trl_ppo.py. Both sides train the
same weights with the same hyperparameters on prompts of the same environment, 16 episodes of 8 to
16 tokens and four epochs per iteration, and are paid by the same reward model. Seconds cover
generation, scoring and optimisation.

Two differences are in trl's favour. Completions that trl generates together share one length, drawn
anew for each batch, while textgym's episodes have a budget each, and rows wait for the longest.
And trl does not clip gradients.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from speed.timing import Comparison, result
from textgym.agents import PPO, PPOConfig
from textgym.models import Completions, load_language_model, load_reward_model
from textgym.models.loading import EMBEDDED_FOLDER
from textgym.wrappers.vector import CreditAssignment

__all__ = [
    "Textgym",
    "Trl",
    "check",
    "draw_prompts",
    "first_reached",
    "measure",
    "race",
    "trailing_mean",
]

NUM_ENVS = 16
"""Episodes per iteration, on both sides."""
SMOOTHING = 10
"""Iterations of the running mean that decides the race."""
TOLERANCE = 1e-4
"""How far logits and scores of the two sides may be apart."""

_ROOT = Path(__file__).parents[2]
_SCRIPT = Path(__file__).with_name("trl_ppo.py")

TRL_FAST: dict[str, Any] = {"generate_batch_size": NUM_ENVS, "fused_adam": True}
"""What speeds trl up whatever its other settings, beside those that are tried."""
TRL_RACE: dict[str, Any] = {
    "minibatch_size": 16,
    "learning_rate": 5e-5,
    "bfloat16": True,
    "attention": "eager",
}
"""trl's settings in the race: on seed 0, minibatches of 4 and rates of 1e-4 and 2e-4 did worse."""
RACE: dict[str, dict[str, Any]] = {
    credit: {"minibatch_size": 16, "learning_rate": 1e-4, "bfloat16": True}
    for credit in ("shaping", "attention")
}
"""Our contestants in the race, by the credit that pays them, and their settings. Shaping with rates
of 2e-4 and 4e-4 did worse on seed 0."""


# --- The two sides --------------------------------------------------------------------------------


class Side(Protocol):
    """One side of the comparison."""

    def run(self, iterations: int) -> list[dict[str, float]]:
        """Train on; a row per iteration with its ``seconds``, ``score``, ``kl`` and ``length``."""


class Textgym:
    """textgym's PPO.

    Args:
        credit: Name of the credit assigner; "sparse" leaves the environment as it is.
        bfloat16: Autocast of the policy, and dtype of the reward model.
        threads: PyTorch's threads while it runs.
        episodes: Of an iteration, all in one batch.
        **hyperparameters: Of PPO.
    """

    def __init__(
        self,
        credit: str = "sparse",
        bfloat16: bool = False,
        threads: int = 1,
        episodes: int = NUM_ENVS,
        **hyperparameters: Any,
    ) -> None:
        dtype = "bfloat16" if bfloat16 else None
        envs = _make_envs(episodes, dtype)
        self.threads = threads
        self._logs = tempfile.TemporaryDirectory()
        self.agent = PPO(
            "embedded",
            envs if credit == "sparse" else CreditAssignment(envs, credit),
            episodes_per_iteration=episodes,
            dtype=dtype,
            log_dir=self._logs.name,
            **hyperparameters,
        )

    def run(self, iterations: int) -> list[dict[str, float]]:
        """See :class:`Side`."""
        history = self.agent.history
        done, threads = len(history), torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            self.agent.learn(
                sys.maxsize,  # the callback ends it
                callback=lambda row: row["time/iteration"] < done + iterations,
            )
        finally:
            torch.set_num_threads(threads)
        ends = [0.0, *(row["time/seconds"] for row in history)]
        return [
            {
                "seconds": ends[done + i + 1] - ends[done + i],
                "score": row["rollout/score_mean"],
                "kl": row["rollout/kl"],
                "length": row["rollout/episode_length"],
            }
            for i, row in enumerate(history[done:])
        ]


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
        learning_rate: float = PPOConfig.learning_rate,
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
            "init_kl_coef": PPOConfig.kl_coef,
            "target": PPOConfig.kl_target,
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
        self._versions: dict[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()  # it ends with its input
        self._process.wait()
        self._folder.cleanup()

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages on trl's side; waits until it is ready."""
        if self._versions is None:
            self._versions = self._read()["ready"]
        return self._versions

    def run(self, iterations: int) -> list[dict[str, float]]:
        """See :class:`Side`; the parts ``generate``, ``reward`` and ``step`` are rows too."""
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
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"trl's side stopped:\n{self._errors.read_text()}")
        return json.loads(line)


def _trl_python() -> Path:
    return Path(os.environ.get("TRL_VENV", _ROOT / ".venv-trl")) / "bin" / "python"


def _has_trl() -> bool:
    """Whether trl can be run; says so if not."""
    if _trl_python().exists():
        return True
    print("No comparison with trl: its environment is missing, run `make trl-env`", file=sys.stderr)
    return False


def _make_envs(num_envs: int, dtype: str | None = None) -> VectorEnv:
    return gym.make_vec(
        "ABC-RLHF-v0", num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, dtype=dtype
    )


def draw_prompts(number: int, seed: int) -> list[list[int]]:
    """Prompts as the environment draws them."""
    envs = _make_envs(1)
    prompts = []
    for seed_of_prompt in np.random.SeedSequence(seed).generate_state(number).tolist():
        observations, _ = envs.reset(seed=[seed_of_prompt])
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


# --- Seconds per iteration ------------------------------------------------------------------------


def _take_turns(
    sides: dict[str, Side], rounds: int, iterations: int
) -> dict[str, list[list[dict[str, float]]]]:
    """Blocks of iterations in turn, in alternating order; by side, the rows of each round."""
    rows: dict[str, list[list[dict[str, float]]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            rows[name].append(sides[name].run(iterations))
    return rows


def _compare(
    trl: Trl, settings: dict[str, dict[str, Any]], rounds: int, iterations: int
) -> tuple[tuple[float, float, float], dict[str, Any]]:
    """The ratio of seconds per iteration, and its details."""
    detail: dict[str, Any] = {"largest_difference": check(trl), "versions": trl.versions}
    sides: dict[str, Side] = {"trl": trl, "textgym": Textgym(**settings["textgym"])}
    _take_turns(sides, rounds=1, iterations=1)  # warms up
    rows = _take_turns(sides, rounds, iterations)
    seconds = {name: [_mean(block, "seconds") for block in blocks] for name, blocks in rows.items()}
    detail |= {"settings": settings, "iterations_per_round": iterations, "seconds": seconds}
    of_trl = [row for block in rows["trl"] for row in block]
    detail["trl_parts"] = {part: _mean(of_trl, part) for part in ("generate", "reward", "step")}
    detail["episode_length"] = {
        name: _mean((row for block in blocks for row in block), "length")
        for name, blocks in rows.items()
    }
    return Comparison(seconds).ratio("trl", "textgym"), detail


def _all_threads() -> list[int]:
    return sorted({1, torch.get_num_threads()})


def _candidates() -> dict[str, list[dict[str, Any]]]:
    """Settings that each side may choose from; the larger the minibatch, the faster both are."""
    common = [
        {"minibatch_size": NUM_ENVS, "bfloat16": bfloat16, "threads": threads}
        for bfloat16, threads in product((False, True), _all_threads())
    ]
    trl = [{**TRL_FAST, **settings} for settings in common]
    eager = [{**settings, "attention": "eager"} for settings in trl if settings["bfloat16"]]
    return {"trl": trl + eager, "textgym": common}


def _fastest(name: str, candidates: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict]]:
    """The settings with the shortest iterations, and the seconds of all."""
    iterations, trials = 4, []
    for settings in candidates:
        with contextlib.ExitStack() as stack:
            if name == "trl":
                prompts = draw_prompts(NUM_ENVS * (iterations + 1), seed=1)
                side: Side = stack.enter_context(Trl(prompts, **settings))
            else:
                side = Textgym(**settings)
            side.run(1)  # warms up
            seconds = float(np.median([row["seconds"] for row in side.run(iterations)]))
        trials.append({**settings, "seconds": seconds})
    return candidates[int(np.argmin([trial["seconds"] for trial in trials]))], trials


def measure(quick: bool) -> list[dict[str, Any]]:
    """Seconds per PPO iteration: trl's over ours, at the defaults and at the best of each side.

    Args:
        quick: Few episodes and iterations, no trials of settings; for tests.

    Returns:
        A row per case; none if trl's environment is missing.
    """
    if not _has_trl():
        return []
    threads = {"threads": torch.get_num_threads()}
    default: dict[str, Any] = {"minibatch_size": 1, **threads}
    ours = {"minibatch_size": PPOConfig.minibatch_size, **threads}
    trials: dict[str, list[dict]] = {}
    if quick:
        default["episodes"] = ours["episodes"] = 4
        best = dict.fromkeys(("trl", "textgym"), default | {"minibatch_size": 4, "bfloat16": True})
    else:
        best = {}
        for name, candidates in _candidates().items():
            best[name], trials[name] = _fastest(name, candidates)
    cases = {
        # With rounds, and iterations in each: with minibatches of 1 they take seconds.
        "minibatches of 1, float32": (dict.fromkeys(("trl", "textgym"), default), ">= 2.5", 8, 1),
        "each at its defaults": ({"trl": default, "textgym": ours}, None, 8, 1),
        "trl at its defaults, textgym at its best settings": (
            {"trl": default, "textgym": best["textgym"]},
            None,
            8,
            1,
        ),
        "each at its best settings": (best, ">= 8", 12, 3),
    }
    prompts = draw_prompts(8 if quick else 40 * NUM_ENVS, seed=0)
    rows = []
    with contextlib.ExitStack() as stack:
        # Both start at once, and wait for their turns.
        processes = [
            stack.enter_context(Trl(prompts, **settings["trl"])) for settings, *_ in cases.values()
        ]
        for trl, (case, (settings, goal, *numbers)) in zip(processes, cases.items(), strict=True):
            rounds, iterations = (1, 1) if quick else numbers
            ratio, detail = _compare(trl, settings, rounds, iterations)
            quantity = "seconds of a PPO iteration: trl / textgym"
            rows.append(result("iteration", case, quantity, ratio, goal, **detail))
    rows[-1]["detail"]["trials"] = trials
    return rows


# --- Race -----------------------------------------------------------------------------------------


def trailing_mean(scores: Sequence[float], window: int = SMOOTHING) -> np.ndarray:
    """Means over as many consecutive scores, the first of them over the first ``window``.

    Args:
        scores: One per iteration, at least one.
        window: At most as many as there are.

    Returns:
        (num_iterations − window + 1,)
    """
    window = min(window, len(scores))
    return np.convolve(scores, np.ones(window) / window, mode="valid")


def first_reached(rows: Sequence[dict[str, float]], goal: float) -> tuple[int, float] | None:
    """The iteration, from 1, at which the running mean reached a score, and the seconds until then.

    Args:
        rows: ``score`` and ``seconds`` of each iteration.
        goal: The score.

    Returns:
        None if it was not reached.
    """
    means = trailing_mean([row["score"] for row in rows])
    (reached,) = np.nonzero(means >= goal)
    if not len(reached):
        return None
    iteration = int(reached[0]) + len(rows) - len(means) + 1
    return iteration, sum(row["seconds"] for row in rows[:iteration])


def race(quick: bool) -> list[dict[str, Any]]:
    """How long each contestant takes to trl's best score.

    trl is paid the score at the end, ours as :data:`RACE` says. They take turns, ten iterations
    each, all of them to the end: the score to be reached is the best that trl's running mean shows
    in the run, and counts from the first iteration at which a running mean is as high.

    Args:
        quick: One seed, a few iterations.

    Returns:
        A row for each contestant of ours: the ratio is the median over seeds of trl's seconds over
        ours, 0 where ours did not get there. None if trl's environment is missing.
    """
    if not _has_trl():
        return []
    blocks, iterations, seeds, episodes = (1, 2, 1, 4) if quick else (7, 10, 3, NUM_ENVS)
    settings = {"trl": {**TRL_FAST, **TRL_RACE}}
    settings |= {name: {"credit": name, **ours} for name, ours in RACE.items()}
    for name, of_side in settings.items():
        candidates = [{**of_side, "threads": threads} for threads in _all_threads()]
        settings[name] = candidates[0] if quick else _fastest(name, candidates)[0]
        settings[name]["episodes"] = episodes
    runs: dict[str, list[list[dict[str, float]]]] = {name: [] for name in settings}
    for seed in range(seeds):
        prompts = draw_prompts(blocks * iterations * episodes, seed=1000 + seed)
        with Trl(prompts, seed=seed, **settings["trl"]) as trl:
            sides: dict[str, Side] = {"trl": trl}
            sides |= {name: Textgym(seed=seed, **settings[name]) for name in RACE}
            for name, of_blocks in _take_turns(sides, blocks, iterations).items():
                runs[name].append([row for block in of_blocks for row in block])
    return [_outcome(name, runs, settings) for name in RACE]


def _outcome(
    name: str,
    runs: dict[str, list[list[dict[str, float]]]],
    settings: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The row of one contestant of the race."""
    sides = ("trl", name)
    goals = [float(trailing_mean([row["score"] for row in rows]).max()) for rows in runs["trl"]]
    reached = {
        side: [first_reached(rows, goal) for rows, goal in zip(runs[side], goals, strict=True)]
        for side in sides
    }
    seconds = {side: [r[1] if r else np.inf for r in of_side] for side, of_side in reached.items()}
    return result(
        "race",
        f"{name} reward, {len(goals)} seeds",
        "seconds to trl's best mean score: trl / textgym",
        Comparison(seconds).ratio("trl", name),
        ">= 20",
        score_to_reach=goals,
        iterations={side: [r and r[0] for r in of_side] for side, of_side in reached.items()},
        seconds={side: [r and r[1] for r in of_side] for side, of_side in reached.items()},
        curves={
            side: [
                {key: [row[key] for row in rows] for key in ("seconds", "score", "kl")}
                for rows in runs[side]
            ]
            for side in sides
        },
        settings={side: settings[side] for side in sides},
    )


def _mean(rows: Iterable[dict[str, float]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
