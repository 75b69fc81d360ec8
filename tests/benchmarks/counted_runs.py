"""Runs for the tests of the runner; in a module, because other processes import them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pandas as pd
import torch


def run(folder: Path, condition: str, seed: int) -> pd.DataFrame:
    """Note that the run began; wait for as long as the folder holds a file with its name."""
    name = f"{condition} {seed}"
    with Path(folder, "log").open("a") as log:
        print(name, file=log, flush=True)
    while Path(folder, name).exists():
        time.sleep(0.05)
    if Path(folder, f"fail {name}").exists():
        raise RuntimeError("no luck")
    if Path(folder, f"kill {name}").exists():
        os._exit(1)
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    threads = torch.get_num_threads()
    return pd.DataFrame(
        {"iteration": [2, 1], "score": [seed + 0.25, -seed], "threads": threads, "cores": cores}
    )


def started(folder: Path) -> list[str]:
    """The runs that have begun, in order."""
    log = Path(folder, "log")
    return log.read_text().splitlines() if log.exists() else []
