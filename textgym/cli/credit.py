"""``textgym credit``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from textgym.cli.console import make_console
from textgym.cli.crediting import Crediting, ScoredText
from textgym.cli.flags import check_page, check_policy, import_from_current_folder, make_credit
from textgym.cli.run_folder import RunSettings
from textgym.cli.texts import GivenText, is_run, read_texts
from textgym.errors import InvalidArgumentError
from textgym.rendering import credit_limit, credit_text, explorer_page, legend_text, visible

if TYPE_CHECKING:
    from textgym.credit import CreditAssigner

__all__ = ["CreditCommand"]


@dataclass(frozen=True, kw_only=True)
class CreditCommand:
    """Score texts and show the credit of each of their tokens; or list the methods.

    With --html, write a page to explore: methods side by side, with search and sorting.
    """

    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """The text, scored as a completion; or several."""
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """List the methods of credit assignment and the potentials."""
    texts: str | None = None
    """More texts: a text file with one per line; a JSONL, CSV or Parquet file with a column text,
    or prompt and completion; or the folder of a run, for its newest samples."""
    html: Path | None = None
    """Write a page of this name, ending in .html, instead of printing."""
    prompt: str = ""
    """What comes before the text, without credit. Default: the start token, else the text's first
    token."""
    credit: tuple[str, ...] = ("abc",)
    """How credit is assigned: names from `textgym credit --list`, or your own as module:name.
    They end at the first word with a space in it, which is a text, or at --."""
    beta: float | None = None
    """Share of the score that is redistributed, or factor on the potential. None: the default."""
    start: Literal["zero", "prompt"] | None = None
    """What credit is measured from: 0, or what the prompt alone is worth. None: the default."""
    reward_model: str | None = None
    """Reward model: "embedded", a folder, a hub id, or your own function as module:name. None: that
    of the run whose texts these are, else "embedded"."""
    tokenizer: str | None = None
    """Tokenizer of the tokens that get credit: "embedded", a folder or a hub id. None: the reward
    model's, and the embedded one for a function."""
    policy: str | None = None
    """Language model whose attention abc-d and abc-d2 read: "embedded", a folder or a hub id. None:
    the embedded one."""
    device: str = "cpu"
    """Device of the reward model, by its torch name."""

    def run(self) -> None:
        """Run the command."""
        if self.show_list:
            make_console().print(*_lists(), sep="\n")
        else:
            self._show_credit()

    def _show_credit(self) -> None:
        names, behind_names = _split_names(self.credit)
        given_texts = self.text + behind_names
        if not given_texts and self.texts is None:
            remedy = 'write one (behind --credit, one word needs "--" before it), or use --texts'
            raise InvalidArgumentError("text", "", remedy)
        if self.html is not None:
            check_page("html", self.html)
        policy = "embedded" if self.policy is None else self.policy
        if self.policy is not None:
            check_policy(policy)
        methods = self._methods(names, policy)
        import_from_current_folder()
        texts, reward_model, tokenizer = self._texts_and_models()
        crediting = Crediting(reward_model, tokenizer, methods, self.device)
        given = [crediting.encode(self._joined(text), "text") for text in given_texts]
        given += [crediting.encode(text, "texts") for text in texts]
        console = make_console()
        if self.html is None:
            for number, one in enumerate(crediting.read(given)):
                if number:
                    console.print()
                _print(console, one, methods)
        else:
            bar = track(
                crediting.read(given),
                "reading",
                total=len(given),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
            about = {name: f"{one!r}, sums to {one.total}" for name, one in methods.items()}
            page = explorer_page([one.credited for one in bar], about)
            self.html.write_text(page, encoding="utf-8")
            console.print(f"page  {self.html}", soft_wrap=True)

    def _texts_and_models(self) -> tuple[list[GivenText], str, str | None]:
        """The texts of --texts, and the names of the reward model and the tokenizer.

        What was not named is that of the run whose texts these are.
        """
        reward_model, tokenizer = self.reward_model, self.tokenizer
        texts = [] if self.texts is None else read_texts(self.texts, self.prompt)
        if self.texts is not None and is_run(self.texts):
            trained = RunSettings.read(Path(self.texts).expanduser(), "texts").environment
            reward_model = trained.reward_model if reward_model is None else reward_model
            if tokenizer is None:
                tokenizer = trained.tokenizer
            else:  # The tokens are those of another one.
                texts = [GivenText(one.prompt, one.text) for one in texts]
        return texts, "embedded" if reward_model is None else reward_model, tokenizer

    def _methods(self, names: Sequence[str], policy: str) -> dict[str, CreditAssigner]:
        if not names:
            raise InvalidArgumentError("credit", self.credit, "name at least one method")
        for name in names:
            if names.count(name) > 1:
                raise InvalidArgumentError("credit", name, "is there twice; name it once")
        return {name: make_credit(name, self.beta, policy, start=self.start) for name in names}

    def _joined(self, text: str) -> GivenText:
        """The text after the prompt, with a space between them where there is none."""
        apart = self.prompt and text and not (self.prompt[-1].isspace() or text[0].isspace())
        return GivenText(self.prompt, " " + text if apart else text)


def _split_names(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of methods behind --credit, and the texts behind those."""
    names = tuple(itertools.takewhile(lambda word: len(word.split()) < 2, words))
    return names, words[len(names) :]


def _print(console: Console, one: ScoredText, methods: dict[str, CreditAssigner]) -> None:
    """Print a text coloured by each method, and a table of the numbers."""
    text = one.credited
    for name, assigner in methods.items():
        credit = text.credit[name]
        console.print(credit_text(text.prompt, text.pieces, credit))
        console.print(legend_text(credit_limit(credit)))
        console.print(f"\n{assigner!r}")
    table = Table("token")
    for name in methods:
        table.add_column("credit" if len(methods) == 1 else name, justify="right")
    for number, piece in enumerate(text.pieces):
        shown = credit_text("", [visible(piece, newlines=True)])
        table.add_row(shown, *(f"{text.credit[name][number]:+.4f}" for name in methods))
    console.print(table)
    console.print(f"score  {text.score:+.4f}")
    for name, assigner in methods.items():
        what = "" if assigner.total == "score" else f"  ({assigner.total})"
        label = "" if len(methods) == 1 else f"  {name}"
        console.print(f"sum    {math.fsum(text.credit[name]):+.4f}{what}{label}")
        for line in _where_attention_is(one, assigner):
            console.print(f"attention  {line}{label}")


def _where_attention_is(one: ScoredText, assigner: CreditAssigner) -> list[str]:
    from textgym.models import AttentionRow
    from textgym.models.bridge import TextCompletions

    lines, scored = [], one.scored
    for readout in assigner.readouts:
        if isinstance(readout, AttentionRow):
            row = scored[readout][one.row]
            completion = row[scored.completion_mask[one.row]].sum().item()
            prompt = row[scored.prompt_mask[one.row]].sum().item()
            parts = [f"{completion:.0%} on the text", f"{prompt:.0%} on what comes before it"]
            if isinstance(scored, TextCompletions):
                outside = 1 - completion - prompt
                parts.append(f"{outside:.0%} on special tokens and template")
            lines.append(", ".join(parts))
    return lines


def _lists() -> tuple[Table, Text]:
    """The table of credit assigners, ids above labels, and a text that names the potentials."""
    from textgym.credit import CREDIT_ASSIGNERS
    from textgym.credit.potentials import POTENTIALS

    table = Table(
        "credit",
        "causal",
        "signed",
        "sums to",
        "needs",
        "paper",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.columns[0].no_wrap = True
    table.columns[3].max_width = 8  # so that everything fits in 80 columns
    table.columns[4].min_width = 18
    table.columns[5].width = 10
    table.padding = (0, 1, 0, 0)
    for name, method in CREDIT_ASSIGNERS.items():
        table.add_row(
            Text(name).append(f"\n{method.label}" if method.label != name else "", "dim"),
            "yes" if method.causal else "no",
            "yes" if method.signed else "no",
            method.sums_to,
            _needs(method),
            method.paper.replace("arXiv ", ""),
        )
    legend = Text(
        "sums to: before the rest of the score is put on the last token. needs: read-outs, and "
        "passes besides the forward pass that scores, for a completion of T tokens. paper: on "
        f"arXiv. Potentials for shaping credit: {', '.join(POTENTIALS)}.",
        style="dim",
    )
    return table, legend


def _needs(method: type[CreditAssigner]) -> str:
    """Read-outs and further passes, one a line."""
    names = sorted(type(readout).__name__ for readout in method.readouts)
    passes = [] if method.cost == "none" else [method.cost]
    return "\n".join([*names, *passes]) or "nothing"
