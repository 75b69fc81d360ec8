"""A page as a browser sees it after its scripts have run."""

from __future__ import annotations

import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def dump_dom(path, address=""):
    """The HTML of a page in headless Chromium; skips the test where there is none.

    Args:
        path: File of the page.
        address: What follows the # of its address.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium to run the page's JavaScript")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent}/user"]
    command = [program, *options, "--dump-dom", f"{path.as_uri()}#{address}"]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()
