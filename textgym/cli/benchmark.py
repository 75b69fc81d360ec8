"""``textgym benchmark``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from textgym.cli.console import make_console
from textgym.cli.flags import check_output, import_from_current_folder
from textgym.errors import InvalidArgumentError, TextgymError

__all__ = ["BenchmarkCommand"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkCommand:
    """Compare methods with statistics: run a suite, make its report again, or list suites."""

    action: Annotated[Literal["run", "report", "list"], tyro.conf.Positional]
    """run: the runs that a suite still lacks, then its report. report: the report alone. list: all
    suites and their methods."""
    suite: Annotated[str, tyro.conf.Positional] = "main"
    """Name of the suite; see `textgym benchmark list`."""
    output: Path | None = None
    """Folder of the runs. None: benchmark/SUITE. What it has is not run again."""
    seeds: int | None = None
    """Number of seeds. None: the suite's."""
    iterations: int | None = None
    """Length of every run. None: the suite's, or else the task's."""
    jobs: int = 1
    """Processes, of one thread each."""
    ray: bool = False
    """Run as tasks of Ray: on the cluster that RAY_ADDRESS names, or else on this machine."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What policy and reward model compute in."""
    fresh: int = 512
    """Fresh completions that are measured three times per run, a multiple of 64; 0 for none."""
    only: tuple[str, ...] = ()
    """Methods of the suite to run now; by default all."""
    tasks: tuple[str, ...] = ()
    """Tasks of the suite to run now; by default all."""
    reuse: tuple[Path, ...] = ()
    """Folders of other suites: runs that this suite shares with them are taken from there."""
    methods: Path | None = None
    """Python file that registers methods of your own; they join the suite."""

    def run(self) -> None:
        """Run the command."""
        _check_packages()
        from textgym.benchmark import SUITES, find_suite, load_methods

        self._check_for_the_action()
        console = make_console()
        import_from_current_folder()
        own = load_methods(self.methods)
        if self.action == "list":
            for name, suite in SUITES.items():
                runs = suite.seeds * len(suite.methods) * len(suite.tasks)
                console.print(f"{name}  {suite.question}", soft_wrap=True)
                console.print(f"  {'; '.join(suite.methods)}", soft_wrap=True)
                tasks = ", ".join(suite.tasks)
                console.print(f"  {suite.seeds} seeds on {tasks}: {runs} runs", soft_wrap=True)
            return
        suite = find_suite(self.suite).joined_by(own)
        folder = self.output or Path("benchmark") / self.suite
        check_output(self.output)
        if self.action == "run":
            from textgym.benchmark.running import run_suite

            try:
                run_suite(
                    suite,
                    folder,
                    seeds=self.seeds,
                    iterations=self.iterations,
                    jobs=self.jobs,
                    engine="ray" if self.ray else "processes",
                    dtype=self.dtype,
                    num_fresh=self.fresh,
                    methods_file=self.methods,
                    only=self.only,
                    tasks=self.tasks,
                    reuse=self.reuse,
                )
            except InvalidArgumentError as error:
                if error.argument != "num_fresh":
                    raise
                raise InvalidArgumentError("fresh", error.value, error.remedy) from None
            except ExceptionGroup as group:  # The other runs are stored.
                first = group.exceptions[0]
                raise TextgymError(f"{group.message}; the first: {first!r}") from group
        from textgym.benchmark.report import write_report

        write_report(folder, suite)
        console.print(f"tables  {folder / 'table.md'}", soft_wrap=True)
        console.print(f"page  {folder / 'report.html'}", soft_wrap=True)

    def _check_for_the_action(self) -> None:
        """Refuse what the action would pass over: a report shows all runs that are there."""
        if self.action == "run":
            return
        for flag in dataclasses.fields(self):
            value = getattr(self, flag.name)
            if flag.name not in ("action", "suite", "output", "methods") and value != flag.default:
                raise InvalidArgumentError(flag.name, value, "only `benchmark run` takes it")


def _check_packages() -> None:
    try:
        import pandas  # noqa: F401
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise TextgymError(
            f"{error}: textgym benchmark needs pip install 'textgym[benchmarks]'"
        ) from None
