"""Seconds of a gradient step in a process of its own, as a line of output.

How glibc deals with freed memory is settled by what a process did before, so that two ways cannot
take turns in one process. Run by choices.py; arguments: model, length of the texts, length of the
completions, ``quick`` or ``full``.
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np

from speed import models
from speed.machine import synthetic_agent, synthetic_rollout

NUM_EPISODES = 8

if __name__ == "__main__":
    name, quick = sys.argv[1], sys.argv[4] == "quick"
    num_tokens, num_steps = map(int, sys.argv[2:4])
    with tempfile.TemporaryDirectory() as log_dir:
        model = models.language_model(name, quick)
        agent = synthetic_agent(model, log_dir, dtype="bfloat16", minibatch_size=NUM_EPISODES)
    batch, _ = agent._label(synthetic_rollout(NUM_EPISODES, num_tokens, num_steps))
    seconds = []
    for _ in range(6 if name == "gpt2-small" else 40):
        start = time.perf_counter()
        agent._update(batch)
        seconds.append(time.perf_counter() - start)
    print(np.median(seconds[len(seconds) // 3 :]))  # The first ones take the memory.
