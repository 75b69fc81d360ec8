"""``textgym credit``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from textgym.cli.console import make_console
from textgym.cli.flags import check_policy, import_from_current_folder, make_credit
from textgym.errors import InvalidArgumentError
from textgym.rendering import credit_text, token_pieces, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textgym.credit import CreditAssigner

__all__ = ["CreditCommand"]


@dataclass(frozen=True, kw_only=True)
class CreditCommand:
    """Score a text and show the credit of each of its tokens; or list the methods."""

    text: tyro.conf.Positional[str] = ""
    """The text, scored as a completion."""
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """List the methods of credit assignment and the potentials."""
    prompt: str = ""
    """What comes before the text, without credit. Default: the start token, else the text's first
    token."""
    credit: str = "abc"
    """How credit is assigned: a name from `textgym credit --list`, or your own as module:name."""
    beta: float | None = None
    """Share of the score that is redistributed, or factor on the potential. None: the default."""
    start: Literal["zero", "prompt"] | None = None
    """What credit is measured from: 0, or what the prompt alone is worth. None: the default."""
    reward_model: str = "embedded"
    """Reward model: "embedded", a folder, a hub id, or your own function as module:name."""
    tokenizer: str | None = None
    """Tokenizer of the tokens that get credit: "embedded", a folder or a hub id. None: the reward
    model's, and the embedded one for a function."""
    policy: str | None = None
    """Language model whose attention abc-d and abc-d2 read: "embedded", a folder or a hub id. None:
    the embedded one."""
    device: str = "cpu"
    """Where the reward model runs, as torch names it."""

    def run(self) -> None:
        """Run the command."""
        if self.show_list:
            make_console().print(*_lists(), sep="\n")
        else:
            self._show_credit()

    def _show_credit(self) -> None:
        from textgym.models import (
            AttentionRow,
            Completions,
            RewardModel,
            TextRewardModel,
            load_reward_model,
            load_tokenizer,
        )
        from textgym.models.bridge import TextCompletions, reading_tokens_of

        policy = "embedded" if self.policy is None else self.policy
        if self.policy is not None:
            check_policy(policy)
        assigner = make_credit(self.credit, self.beta, policy, start=self.start)
        import_from_current_folder()
        own = None if self.tokenizer is None else load_tokenizer(self.tokenizer)
        loaded = load_reward_model(
            self.reward_model, own or load_tokenizer("embedded"), device=self.device
        )
        tokenizer = own or getattr(loaded, "tokenizer", None) or load_tokenizer("embedded")
        reward_model = reading_tokens_of(tokenizer, loaded)
        if reward_model is loaded and isinstance(loaded, RewardModel) and not loaded.is_causal:
            reward_model = TextRewardModel(loaded, tokenizer)  # with its [CLS] and [SEP]
        if assigner.needs_causal_reward_model and not reward_model.is_causal:
            raise InvalidArgumentError(
                "reward_model", self.reward_model, f"{self.credit} credit needs a decoder"
            )
        assigner.check_reward_model(reward_model)
        prompt_ids, completion_ids = self._encode(tokenizer)
        limit = getattr(reward_model, "max_length", None)
        num_tokens = len(prompt_ids) + len(completion_ids)
        if limit is not None and num_tokens > limit:
            raise InvalidArgumentError(
                "text",
                self.text,
                f"with the prompt it has {num_tokens} tokens; the reward model takes {limit}",
            )
        batch = Completions.from_lists([prompt_ids], [completion_ids])
        scored = reward_model.read(batch, assigner.readouts)
        credit = assigner(scored)[scored.completion_mask].tolist()
        pieces = token_pieces(tokenizer, completion_ids)
        console = make_console()
        prompt = str(tokenizer.decode(prompt_ids, skip_special_tokens=True))
        console.print(credit_text(prompt, pieces, credit))
        console.print(f"\n{assigner!r}")
        table = Table("token")
        table.add_column("credit", justify="right")
        for piece, value in zip(pieces, credit, strict=True):
            table.add_row(credit_text("", [visible(piece, newlines=True)]), f"{value:+.4f}")
        console.print(table)
        console.print(f"score  {scored.score[0].item():+.4f}")
        what = "" if assigner.total == "score" else f"  ({assigner.total})"
        console.print(f"sum    {math.fsum(credit):+.4f}{what}")
        for readout in assigner.readouts:
            if isinstance(readout, AttentionRow):
                row = scored[readout]
                completion = row[scored.completion_mask].sum().item()
                prompt = row[scored.prompt_mask].sum().item()
                parts = [f"{completion:.0%} on the text", f"{prompt:.0%} on what comes before it"]
                if isinstance(scored, TextCompletions):
                    outside = 1 - completion - prompt
                    parts.append(f"{outside:.0%} on special tokens and template")
                console.print(f"attention  {', '.join(parts)}")

    def _encode(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of the text."""
        from textgym.prompts import encode_prompts

        text = self.text
        if self.prompt and not (self.prompt[-1].isspace() or text[:1].isspace()):
            text = " " + text
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"]) if self.text else []
        if self.prompt:
            prompt_ids = encode_prompts([self.prompt], tokenizer)[0]
        elif tokenizer.bos_token_id is not None:
            prompt_ids = [tokenizer.bos_token_id]
        else:
            prompt_ids, ids = ids[:1], ids[1:]
        if not ids:
            raise InvalidArgumentError("text", self.text, "it has no token to give credit to")
        return prompt_ids, ids


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
