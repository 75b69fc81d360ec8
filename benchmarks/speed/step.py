"""Seconds of a gradient step in a process of its own, as a line of output.

How glibc treats freed memory depends on what a process did before, so two ways of treating it
cannot take turns in one process. choices.py runs this::

    python -m speed.step gpt2-small 128 96 kept full

Arguments: model, length of the texts, length of the completions, ``kept`` or ``returned``,
``quick`` or ``full``.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from speed import models
from speed.update import Updater, random_episodes
from textgym.memory import keep_freed_memory

NUM_EPISODES = 8


def main(name: str, num_tokens: str, num_steps: str, memory: str, size: str) -> None:
    if memory == "kept":
        keep_freed_memory()
    updater = Updater(models.language_model(name, quick=size == "quick"), "bfloat16")
    episodes = random_episodes(NUM_EPISODES, int(num_tokens), int(num_steps))
    seconds = []
    for _ in range(6 if name == "gpt2-small" else 40):
        start = time.perf_counter()
        updater.update(episodes)
        seconds.append(time.perf_counter() - start)
    print(np.median(seconds[len(seconds) // 3 :]))  # The first ones take the memory.


if __name__ == "__main__":
    main(*sys.argv[1:])
