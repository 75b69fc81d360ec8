"""The pictures of the pages on environments and agents."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pandas as pd
from PIL import Image

from textgym.benchmark.curves import draw_seeds, new_figure, save
from textgym.registration import ENVIRONMENTS
from textgym.wrappers import TopKActions

__all__ = ["draw", "draw_curves", "draw_episode"]

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "benchmarks/results/tuning/short/test/runs.parquet"
CURVES = {
    "ppo": {
        "sparse": "#0072B2",
        "sparse, λ = 1": "#56B4E9",
        "ABC": "#E69F00",
        "uniform": "#CC79A7",
        "prefix score": "#D55E00",
        "attention-weighted": "#009E73",
    },
    "rloo": {"RLOO": "#000000", "RLOO, prefix score": "#8B5A2B", "prefix score": "#D55E00"},
    "grpo": {"GRPO": "#666666", "RLOO": "#000000", "prefix score": "#D55E00"},
}
"""The methods in the figure of each agent's page, with the colours of the other figures."""
_SEEDS = {
    "ABC-RLHF-v0": 12,
    "ABC-RLHF-Long-v0": 2,
    "ABC-RLHF-Features-v0": 7,
    "ABC-RLHF-Features-Dense-v0": 7,
    "ABC-RLHF-Planted-v0": 58,
}
"""Of episodes with a good score."""
_NUM_LIKELY = 4


def draw(folder: Path) -> None:
    """Draw all pictures into a folder."""
    for name in ("environments", "agents"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for env_id in ENVIRONMENTS:
        frame = draw_episode(env_id, _SEEDS[env_id])
        frame.save(folder / "environments" / f"{env_id.lower()}.png", optimize=True)
    for agent in CURVES:
        draw_curves(agent, folder / "agents" / f"{agent}.png")


def draw_episode(env_id: str, seed: int) -> Image.Image:
    """The last frame of an episode whose tokens are drawn from the four likeliest ones."""
    env: gym.Env = gym.make(env_id, render_mode="rgb_array")
    if "Features" not in env_id and env_id != "ABC-RLHF-Planted-v0":
        env = TopKActions(env, _NUM_LIKELY)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    terminated = False
    while not terminated:
        _, _, terminated, _, _ = env.step(env.action_space.sample())
    frame = env.render()
    env.close()
    return Image.fromarray(frame)


def draw_curves(agent: str, path: Path) -> None:
    """Score and KL against iterations under ten seeds, from the committed rows of tuning.py."""
    rows = pd.read_parquet(RUNS)
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    for method, color in CURVES[agent].items():
        of_method = rows[(rows["method"] == method) & (rows["iteration"] > 0)]
        label = f"PPO, {method}" if method in CURVES["ppo"] else method
        draw_seeds(left, of_method, "score", 5, color, label)
        draw_seeds(right, of_method, "kl", 5, color, label)
    left.set_ylabel("mean score")
    right.set_ylabel("KL to the reference policy (nats)")
    for axes in (left, right):
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    save(figure, path)
