"""Make the pictures in docs/images: an episode as it is written, the explorer, the page of runs.

python docs/pictures.py
python docs/pictures.py --only episode --output /tmp/pictures

The episode needs nothing but textgym. The two pages are photographed by Chromium, and the second
one needs training runs: those that --runs lacks are trained first, six runs of some minutes each.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from PIL import Image

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO, collect_episodes
from textgym.wrappers import CreditAssignment

IMAGES = Path(__file__).parent / "images"
PROMPT = "I wanted to love this movie, but"
SEED = 150  # chosen for a text that is easy to read, with clear credit of both signs
LENGTHS = {"min_new_tokens": 20, "max_new_tokens": 28}
MILLISECONDS = {"first": 900, "token": 140, "last": 5000}

REVIEWS = """\
A wonderful film, but the ending is dull.
The acting is superb and the story moved me to tears.
I wanted to like it. I really did. It is a mess.
Two hours of my life that I will never get back.
Not bad at all: funny, warm and beautifully shot.
The script has no idea where it is going, and takes its time to get there.
"""
METHODS = ("abc", "prefix-score", "occlusion")
CREDITS, SEEDS = ("prefix-score", "sparse"), (0, 1, 2)
TRAINING = [
    *("--min-new-tokens", "12", "--max-new-tokens", "24"),
    *("--total-timesteps", "12000"),
]


def draw_episode(path: Path) -> None:
    """An episode that the embedded policy writes, a frame per token; credit comes with the last."""
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        num_envs=1,
        prompts=[PROMPT],
        autoreset_mode=AutoresetMode.DISABLED,
        **LENGTHS,
    )
    settings = {"episodes_per_iteration": 1, "minibatch_size": 1, "temperature": 0.6}
    policy = PPO("embedded", envs, **settings).policy
    with torch.no_grad():
        rollout = collect_episodes(policy, envs, 1, torch.Generator().manual_seed(SEED))
    num_steps = rollout.completion_mask.shape[1]

    env = gym.make("ABC-RLHF-v0", prompts=[PROMPT], render_mode="rgb_array", **LENGTHS)
    env = CreditAssignment(env, "prefix-score")
    budget = int(rollout.token_budgets[0])
    env.reset(options={"prompt": PROMPT, "max_new_tokens": budget})
    frames = [env.render()]
    for token in rollout.input_ids[0, -num_steps:].tolist():
        env.step(token)
        frames.append(env.render())

    # One palette for all frames, taken from the last one, which has all the colours.
    last = Image.fromarray(frames[-1]).quantize(64, dither=Image.Dither.NONE)
    pictures = [
        Image.fromarray(frame).quantize(palette=last, dither=Image.Dither.NONE) for frame in frames
    ]
    durations = [MILLISECONDS["token"]] * len(frames)
    durations[0], durations[-1] = MILLISECONDS["first"], MILLISECONDS["last"]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )


def photograph_explorer(path: Path, work: Path) -> None:
    """The page of `textgym credit --html`."""
    (work / "reviews.txt").write_text(REVIEWS, encoding="utf-8")
    page = work / "explorer.html"
    texts = ["--texts", str(work / "reviews.txt"), "--html", str(page)]
    textgym_command("credit", *texts, "--credit", *METHODS)
    photograph(page, path, 1180, 790, "#sort=score")


def photograph_report(path: Path, work: Path, runs: Path) -> None:
    """The page of `textgym report`."""
    folders = []
    for credit in CREDITS:
        for seed in SEEDS:
            folders.append(str(runs / f"{credit}-{seed}"))
            if not (runs / f"{credit}-{seed}" / "checkpoints").exists():
                flags = ["--credit", credit, "--seed", str(seed), *TRAINING]
                textgym_command("train", *flags, "--output", folders[-1])
    page = work / "report.html"
    textgym_command("report", *folders, "--output", str(page))
    photograph(page, path, 1180, 2330)


def textgym_command(*words: str) -> None:
    """Run `textgym`."""
    subprocess.run([sys.executable, "-m", "textgym", *words], check=True)


def photograph(page: Path, path: Path, width: int, height: int, address: str = "") -> None:
    """A picture of a page."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("the pages are photographed by Chromium, which is not installed")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = f"--window-size={width},{height}"
    shot = [f"--screenshot={path}", size, page.as_uri() + address]
    subprocess.run([program, *options, *shot], check=True, capture_output=True)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)


def main() -> None:
    """Make the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("episode", "explorer", "report")
    parser.add_argument("--only", choices=names, help="one picture; by default all of them")
    parser.add_argument("--output", type=Path, default=IMAGES)
    parser.add_argument("--runs", type=Path, default=Path("build/pictures"), help="of training")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in [arguments.only] if arguments.only else names:
        with tempfile.TemporaryDirectory() as folder:
            if name == "episode":
                draw_episode(arguments.output / "episode.gif")
            elif name == "explorer":
                photograph_explorer(arguments.output / "explorer.png", Path(folder))
            else:
                path = arguments.output / "report.png"
                photograph_report(path, Path(folder), arguments.runs)


if __name__ == "__main__":
    main()
