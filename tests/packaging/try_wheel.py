"""Build textgym as a package index would carry it, and try it in a fresh environment.

``make wheel-test`` runs this. The wheel is built from the source distribution, so both are checked.
Everything happens in a temporary folder outside the checkout.

    python tests/packaging/try_wheel.py [EXTRA_INDEX_URL]

The argument is one more package index to take torch from.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What a user's first program does.
PROGRAM = """\
import gymnasium as gym
import textgym
from textgym.agents import PPO

assert "site-packages" in textgym.__file__, textgym.__file__

env = gym.make("ABC-RLHF-v0", max_new_tokens=4, min_new_tokens=4)
env.reset(seed=0)
for _ in range(4):
    _, reward, terminated, _, info = env.step(env.action_space.sample())
assert terminated and reward == info["score"] != 0

envs = gym.make_vec("ABC-RLHF-v0", num_envs=4, autoreset_mode="Disabled")
agent = PPO("embedded", envs, seed=0)
agent.learn(total_timesteps=1)
assert len(agent.history) == 1
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command, and exit with its output if it fails."""
    print("$", *command, flush=True)
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        sys.exit(process.stdout + process.stderr)
    return process.stdout


def build(folder: Path) -> Path:
    """Build the source distribution and, from it, the wheel; return the wheel's path."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


def check_contents(wheel: Path) -> None:
    """Check that the wheel holds the package's files and no others."""
    listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    paths = run(*listing, "textgym", "agents", cwd=ROOT).splitlines()
    expected = {
        f"textgym/{path}" if path.startswith("agents/") else path
        for path in paths
        if (ROOT / path).is_file()
    }
    contents = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if contents != expected:
        sys.exit(
            f"missing from the wheel: {sorted(expected - contents)}\n"
            f"in the wheel, but not in the package: {sorted(contents - expected)}"
        )


def install(wheel: Path, folder: Path, indexes: list[str]) -> Path:
    """Install the wheel and mypy in a fresh environment; return its folder of programs."""
    run(sys.executable, "-m", "venv", folder, cwd=ROOT)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    extra = [f"--extra-index-url={index}" for index in indexes]
    pip = [programs / "python", "-m", "pip", "install", "--quiet"]
    run(*pip, "--constraint", ROOT / "constraints.txt", *extra, wheel, "mypy", cwd=folder)
    return programs


def main() -> None:
    """Build, install and try the wheel."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        check_contents(wheel)
        programs = install(wheel, folder / "venv", sys.argv[1:])
        (folder / "program.py").write_text(PROGRAM)
        run(programs / "python", "program.py", cwd=folder)
        run(programs / "textgym", "--help", cwd=folder)
        shutil.copy(ROOT / "tests" / "packaging" / "check_types.py", folder)
        print(run(programs / "python", "check_types.py", cwd=folder))


if __name__ == "__main__":
    main()
