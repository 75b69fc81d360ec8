"""Suites that compare methods of credit assignment and agents, with statistics.

``textgym benchmark run SUITE`` runs a suite, and ``textgym benchmark report SUITE`` makes its page
again. Needs the extra ``textgym[benchmarks]``. docs/protocol.md says what a suite promises.
"""

from textgym.benchmark.methods import METHODS, find_method, load_methods, register_method
from textgym.benchmark.plan import TASKS, Method, Suite, Task
from textgym.benchmark.suites import SUITES, find_suite

__all__ = [
    "METHODS",
    "SUITES",
    "TASKS",
    "Method",
    "Suite",
    "Task",
    "find_method",
    "find_suite",
    "load_methods",
    "register_method",
]
