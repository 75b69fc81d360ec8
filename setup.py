"""Stops a build that would leave out ``textgym.agents``; pyproject.toml says the rest."""

import sys
from pathlib import Path

from setuptools import setup

if not Path(__file__).with_name("textgym").joinpath("agents", "__init__.py").is_file():
    sys.exit(
        "textgym/agents must be a symbolic link to ../agents, and this checkout has a plain file "
        "there. On Windows, turn on Developer Mode and clone again with "
        "`git clone -c core.symlinks=true`."
    )

setup()
