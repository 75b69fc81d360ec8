"""The gallery: one text in the colours of every credit assigner and potential."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Sequence

import torch

from making.docstrings import Docstring, markdown
from textgym.credit import CREDIT_ASSIGNERS, POTENTIALS, CreditAssigner, get_credit_assigner
from textgym.credit.potentials import get_potential
from textgym.models import Completions, RewardModel, load_reward_model
from textgym.rendering import credit_colour, credit_limit, token_pieces
from textgym.rendering.scale import is_marked

__all__ = ["PROMPT", "TEXT", "coloured", "page", "sample"]

PROMPT, TEXT = "This film:", " a dull story, but wonderful actors."
_OPENING = """\
# Gallery of credit

One text, one score, and every method's answer to the question of which token earned it. Blue is
positive credit, underlined vermilion is negative, and the strongest colour in a row is its largest
credit. Hover over a token to see its number. The score comes from the embedded reward model:
{score:+.2f}, in standard deviations of the untrained policy's scores.

Here every method redistributes the whole score (β = 1), so the numbers of a row sum to
{score:+.2f}. What a method does not explain lands on the last token. *Causal* methods look only at
the text so far, so `PotentialShaping` can pay them while the text is written. The others, called
*hindsight* methods, need the finished text ([which one do I
need?](concepts/shaping_or_credit.md#which-one-does-my-agent-need)).

"""


def coloured(prompt: str, pieces: Sequence[str], values: Sequence[float]) -> str:
    """A text as HTML, each token on its colour and with its number.

    Args:
        prompt: What comes before, in grey.
        pieces: The text of each token.
        values: One number per token.
    """
    limit = credit_limit(values)
    spans = [f'<span class="prompt">{html.escape(prompt)}</span>']
    for piece, value in zip(pieces, values, strict=True):
        if abs(value) < 0.005:  # Its sign is that of a rounding error, and differs by processor.
            value = 0.0
        (red, green, blue), opacity = credit_colour(value, limit)
        style = f"background:rgba({red},{green},{blue},{opacity:.2f})"
        style += ";text-decoration:underline" if is_marked(value, limit) else ""
        spans.append(f'<span style="{style}" title="{value:+.2f}">{html.escape(piece)}</span>')
    return f'<div class="credit-text">{"".join(spans)}</div>'


def sample(names: Sequence[str]) -> str:
    """The rows of some methods, as HTML."""
    reward_model, completions, pieces = _text()
    assigners = [_at_full_strength(name) for name in names]
    credits = [_credit(assigner, reward_model, completions) for assigner in assigners]
    return _rows(
        [
            ("", assigner.label, coloured(PROMPT, pieces, credit))
            for assigner, credit in zip(assigners, credits, strict=True)
        ]
    ).strip()


def _text() -> tuple[RewardModel, Completions, list[str]]:
    """The embedded reward model, the text as tokens, and the pieces of its completion."""
    reward_model = load_reward_model("embedded")
    tokenizer = reward_model.tokenizer
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (PROMPT, TEXT)]
    completions = Completions.from_lists([ids[0]], [ids[1]])
    return reward_model, completions, token_pieces(tokenizer, ids[1])


def page() -> str:
    """The page in Markdown, with HTML for the coloured texts."""
    reward_model, completions, pieces = _text()
    score = reward_model.read(completions).score.item()
    texts, details = [], []
    for name in CREDIT_ASSIGNERS:
        assigner = _at_full_strength(name)
        credit = _credit(assigner, reward_model, completions)
        text = coloured(PROMPT, pieces, credit)
        texts.append((f"#{name}", assigner.label, text))
        details.append(_details(assigner, len(pieces), text))
    potentials = [_potential(name, reward_model, completions, pieces) for name in POTENTIALS]
    parts = [_OPENING.format(score=score), _rows(texts)]
    parts += ["\n## The methods\n\n", "\n\n".join(details), _POTENTIALS, "\n\n".join(potentials)]
    return "".join(parts) + "\n" + _CLOSING


_POTENTIALS = """

## The potentials

A potential says how good the text is so far. The colours show its values Φ, not their differences:
causal shaping pays βγΦ(next) − βΦ(now), and these payments are the credit of `shaping` and
`prefix-score` above.

"""
_CLOSING = """
A third potential, `textgym.credit.ReferenceValue`, must first be fitted to completions of the
reference policy ([how](agents/ppo.md#values-without-a-learned-critic)).

Write [your own method](howto/own_credit.md) or [your own potential](howto/own_potential.md), or try
these on a text of your own: `textgym credit "a dull story, but wonderful actors" --credit shapley`.
[Methods compared](credit.md#what-they-know-distort-and-cost) measures how close each method comes
to a known truth.
"""


def _at_full_strength(name: str) -> CreditAssigner:
    signature = inspect.signature(CREDIT_ASSIGNERS[name])
    arguments = {"policy": "embedded", "beta": 1.0}
    return get_credit_assigner(
        name, **{key: value for key, value in arguments.items() if key in signature.parameters}
    )


def _credit(
    assigner: CreditAssigner, reward_model: RewardModel, completions: Completions
) -> list[float]:
    scored = reward_model.read(completions, assigner.readouts)
    return assigner(scored)[scored.completion_mask].tolist()


def _rows(texts: Sequence[tuple[str, str, str]]) -> str:
    """A table of address, label and text, in HTML, because Markdown's cells have no blocks."""
    rows = []
    for address, label, text in texts:
        shown = html.escape(label)
        shown = f'<a href="{address}">{shown}</a>' if address else shown
        rows.append(f"<tr><td>{shown}</td><td>{text}</td></tr>")
    return "\n".join(['<table class="credit-table">', *rows, "</table>"]) + "\n"


def _details(assigner: CreditAssigner, num_tokens: int, text: str) -> str:
    doc = Docstring.of(type(assigner))
    about, cost, guarantee = _taken_apart(doc)
    needs = ", ".join(f"`{type(one).__name__}`" for one in sorted(assigner.readouts, key=repr))
    facts = [
        f"**Cost**: {cost} {_passes(assigner, num_tokens)}",
        f"**Guarantee**: {guarantee} Tests: {_tests(assigner)}.",
        f"**Source**: {_source(assigner.paper)}.",
        f"**Kind**: {'causal' if assigner.causal else 'hindsight'}, "
        f"{'signed' if assigner.signed else 'of the sign of the score'}; reads "
        f"{needs or 'nothing but the score'}. Class: `textgym.credit.{type(assigner).__name__}`.",
    ]
    label = assigner.label[0].upper() + assigner.label[1:]
    parts = [f"### {assigner.name}", f"**{label}.** {_formula(_linked(doc.summary))}", text]
    parts += [_formula(_linked(about))] if about else []
    return "\n\n".join([*parts, "\n".join(f"- {fact}" for fact in facts)])


def _passes(assigner: CreditAssigner, num_tokens: int) -> str:
    """The passes that a completion of so many tokens takes besides the one that scores it."""
    counts = {
        "forward": assigner.forward_passes(num_tokens),
        "backward": assigner.backward_passes(num_tokens),
    }
    passes = [f"{n} {kind} {'pass' if n == 1 else 'passes'}" for kind, n in counts.items() if n]
    return f"For these {num_tokens} tokens: {' and '.join(passes) or 'no further pass'}."


def _formula(text: str) -> str:
    """Set the formula of a method as code."""
    formula = r"((?:credit|attribution)_t = .+?)(?=, (?:with|as|also)|\. |\.$| \([A-Z][a-z])"
    return re.sub(formula, r"`\1`", text, count=1)


def _taken_apart(doc: Docstring) -> tuple[str, str, str]:
    """What a docstring says of the method, of its cost and of its guarantee, in Markdown."""
    about, rest = re.split(r"^Cost: ", doc.body, flags=re.MULTILINE)
    cost, guarantee = re.split(r"\s+Guarantee: ", rest)
    paragraphs = [" ".join(part.split()) for part in about.strip().split("\n\n")]
    return (
        "\n\n".join(paragraphs),
        _sentence(cost),
        _sentence(guarantee),
    )


def _sentence(text: str) -> str:
    text = _linked(" ".join(text.split()))
    return text[0].upper() + text[1:]


def _linked(text: str) -> str:
    """Roles of other methods become links to them on this page, arXiv numbers links to papers."""
    ids = {assigner.__name__: name for name, assigner in CREDIT_ASSIGNERS.items()}

    def link(role: str) -> str | None:
        name = ids.get(role.rpartition(".")[2])
        return f"[{name}](#{name})" if name else None

    text = markdown(text, link)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _source(paper: str) -> str:
    return "a control, or textgym's own" if paper == "none" else _linked(paper)


def _tests(assigner: CreditAssigner) -> str:
    names = ["returns_are_kept", "causal_shaping" if assigner.causal else "hindsight_credit"]
    return ", ".join(f"[`test_{one}.py`](../tests/theory/test_{one}.py)" for one in names)


def _potential(
    name: str, reward_model: RewardModel, completions: Completions, pieces: Sequence[str]
) -> str:
    potential = get_potential(name)
    doc = Docstring.of(type(potential))
    with torch.no_grad():
        scored = reward_model.read(completions, potential.readouts)
        values = potential(scored)[scored.completion_mask].tolist()
    about = [" ".join(part.split()) for part in doc.body.split("\n\n")]
    return "\n\n".join(
        [
            f"### Potential {name}",
            _linked(doc.summary),
            coloured(PROMPT, pieces, values),
            *(_linked(part) for part in about),
            f"- **Source**: {_source(potential.paper)}. Class: "
            f"`textgym.credit.{type(potential).__name__}`.",
        ]
    )
