"""Peak memory of a call, and a profiler."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from .timing import no_garbage_collection

__all__ = ["peak_memory", "quiet_profile"]

# The profiler's library writes a line to stderr whenever it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def quiet_profile(**keywords: Any) -> profile:
    """A profiler of the processor."""
    return profile(activities=[ProfilerActivity.CPU], **keywords)


def peak_memory(function: Callable[[], object]) -> float:
    """The most memory that tensors hold at any time during a call, beyond what they held before.

    PyTorch's profiler notes every block that the allocator hands out or takes back; the largest
    running sum is the peak. It is exact and repeats, and unlike the peak of the resident memory it
    does not depend on what the C library returns to the system, what earlier calls left behind, or
    the size of the model. Scratch memory inside matrix products is not counted.

    Args:
        function: Called once. Call it before as well if its first call sets things up.

    Returns:
        Megabytes (10⁶ bytes).
    """
    with no_garbage_collection(), quiet_profile(profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    blocks = [event for event in events if event.get("name") == "[memory]"]
    # They are in order already, and blocks may share a time: a stable sort.
    blocks.sort(key=lambda event: event["ts"])
    sizes = [event["args"]["Bytes"] for event in blocks]
    return max(0.0, float(np.cumsum(sizes).max(initial=0))) / 1e6
