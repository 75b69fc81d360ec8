"""The demo: sparse reward, ABC and prefix-score shaping on real text, side by side."""

from textgym.demo.protocol import ENDS, METHODS, NUM_ENVS, NUM_SAMPLES, SMOOTHING, Method
from textgym.demo.run import run_demo
from textgym.demo.summary import Summary, summarize, summary_table

__all__ = [
    "ENDS",
    "METHODS",
    "NUM_ENVS",
    "NUM_SAMPLES",
    "SMOOTHING",
    "Method",
    "Summary",
    "run_demo",
    "summarize",
    "summary_table",
]
