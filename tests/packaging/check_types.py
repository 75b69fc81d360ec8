"""Check that mypy sees textgym's types from a program outside the checkout.

When a type checker cannot follow an install, every name imported from it becomes Any, and wrong
calls pass unnoticed. ``make lint`` runs this check against the editable install, ``make
wheel-test`` against the wheel:

    python tests/packaging/check_types.py [CACHE_FOLDER]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# The comments are what mypy must report: the code of an error, or a revealed type. On lines
# without one it must report nothing.
PROGRAM = """\
from textgym.agents import PPO, PPOConfig
from textgym.agents import NoSuchAgent  #: attr-defined
from textgym.agents.sb3 import HindsightCreditCallback
from textgym.models import RewardModel
from textgym.no_such_module import anything  #: import-not-found

PPO.no_such_method(1, 2)  #: attr-defined
PPO("embedded")  #: call-arg
PPOConfig(no_such_hyperparameter=1)  #: call-arg
HindsightCreditCallback.no_such_method()  #: attr-defined
RewardModel.no_such_method()  #: attr-defined

agent = PPO.load("agent")
reveal_type(agent)  #: textgym.agents.ppo.PPO
agent.learn("many")  #: arg-type
reveal_type(PPOConfig().gamma)  #: float
"""


def expected_reports() -> set[tuple[int, str]]:
    """Return the line numbers of the program, each with what mypy must report there."""
    lines = enumerate(PROGRAM.splitlines(), start=1)
    return {(number, line.split("#: ")[1]) for number, line in lines if "#: " in line}


def run_mypy(cache_folder: str) -> str:
    """Run mypy on the program, in a folder of its own, and return what it prints.

    Args:
        cache_folder: Where mypy keeps its cache.
    """
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", cache_folder]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "program.py").write_text(PROGRAM)
        run = subprocess.run(
            [*command, "program.py"], cwd=folder, capture_output=True, text=True, check=False
        )
    return run.stdout + run.stderr


def reports_in(output: str) -> set[tuple[int, str]]:
    """Return the line numbers of the program, each with what mypy reported there."""
    pattern = r'^program\.py:(\d+): (?:error: .*\[(.*)\]|note: Revealed type is "(.*)")$'
    found = re.findall(pattern, output, re.MULTILINE)
    return {(int(number), code or revealed) for number, code, revealed in found}


def main() -> None:
    """Compare what mypy reports with what it must report, and exit with an error if they differ."""
    cache_folder = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else os.devnull
    output = run_mypy(cache_folder)
    expected, found = expected_reports(), reports_in(output)
    problems = [f"line {number}: {what} was not reported" for number, what in expected - found]
    problems += [f"line {number}: {what} was reported" for number, what in found - expected]
    if problems:
        sys.exit("\n".join(["mypy does not see textgym's types:", *sorted(problems), output]))
    print("A program outside the checkout sees textgym's types.")


if __name__ == "__main__":
    main()
