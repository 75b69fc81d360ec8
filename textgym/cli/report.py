"""``textgym report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from textgym.cli.console import make_console
from textgym.cli.flags import check_page
from textgym.errors import InvalidArgumentError

__all__ = ["ReportCommand"]


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Show training runs on one page: curves, score against KL, settings, completions.

    Runs that are under way are shown as far as they are. Runs that differ in their seeds only are
    shown as one, with the mean and its interval.
    """

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of `textgym train`."""
    output: Path = Path("report.html")
    """The page."""

    def run(self) -> None:
        """Run the command."""
        check_page("output", self.output)
        if not self.runs:
            raise InvalidArgumentError("runs", "", "name at least one folder of textgym train")
        from textgym.cli.report_page import report_page
        from textgym.cli.run_data import grouped, read_run
        from textgym.plotting import MOST_LINES

        runs = [read_run(Path(run)) for run in self.runs]
        # A run that is named twice must not count as two.
        groups = grouped(list({run.folder.resolve(): run for run in runs}.values()))
        if len(groups) > MOST_LINES:
            remedy = f"are {len(groups)} kinds of runs; only {MOST_LINES} can be told apart"
            raise InvalidArgumentError("runs", " ".join(self.runs), remedy)
        self.output.write_text(report_page(groups), encoding="utf-8")
        make_console().print(f"page  {self.output}", soft_wrap=True)
