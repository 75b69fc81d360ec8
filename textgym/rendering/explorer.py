"""A page that shows texts with the credit of several methods side by side.

The page holds its texts as data, and a few lines of JavaScript draw those that are looked at, 20 at
a time. So it stays fast with thousands of texts. What is shown is in the address of the page, such
as ``#sort=score&methods=abc,shaping&search=dull``, so a view can be shared.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from textgym.rendering.html import json_block, make_page, scale_bar
from textgym.rendering.scale import FULL_OPACITY, MARKED_SHARE, NEGATIVE, POSITIVE
from textgym.rendering.terminal import visible

__all__ = ["CreditedText", "explorer_page"]


@dataclass(frozen=True)
class CreditedText:
    """A scored text with the credit that some methods give to its tokens.

    Attributes:
        prompt: What stands before the text, without credit.
        pieces: Text of each token.
        score: Score of the text.
        credit: Credit of each token, by the name of the method.
    """

    prompt: str
    pieces: Sequence[str]
    score: float
    credit: Mapping[str, Sequence[float]] = field(default_factory=dict)


def explorer_page(
    texts: Sequence[CreditedText], methods: Mapping[str, str], title: str = "Credit of texts"
) -> str:
    """Make the page.

    Args:
        texts: The texts; each has the credit of all methods.
        methods: By the names of the methods, what the page says about them.
        title: The heading.
    """
    data = {
        "methods": [{"name": name, "about": about} for name, about in methods.items()],
        "texts": [
            {
                "prompt": visible(one.prompt),
                "pieces": [visible(piece) for piece in one.pieces],
                "score": round(one.score, 4),
                "credit": [[_rounded(x) for x in one.credit[name]] for name in methods],
            }
            for one in texts
        ],
        "scale": {
            "positive": POSITIVE,
            "negative": NEGATIVE,
            "opacity": FULL_OPACITY,
            "marked": MARKED_SHARE,
        },
    }
    boxes = "".join(
        f'<label title="{html.escape(about)}"><input type="checkbox" name="method" '
        f'value="{html.escape(name)}" checked> {html.escape(name)}</label> '
        for name, about in methods.items()
    )
    body = _BODY.format(title=html.escape(title), boxes=boxes, bar=scale_bar())
    return make_page(title, body + json_block("texts", data), style=_STYLE, script=_SCRIPT)


def _rounded(value: float) -> float:
    """The credit with as many digits as anybody reads; fewer bytes."""
    return float(f"{value:.5g}")


_STYLE = """
body { max-width: none }
form { display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; align-items: end; padding: .7rem 1rem;
  background: var(--panel); border-radius: 6px; position: sticky; top: 0; z-index: 1 }
fieldset { border: 0; margin: 0; padding: 0 } legend, .field { font-size: 13px; padding: 0 }
fieldset label { margin-right: .8rem; font-size: 15px } .field > * { display: block }
input, select, button { font: inherit; color: inherit }
#table { overflow-x: auto } table { width: 100% } td.text { min-width: 16rem }
thead th { white-space: nowrap } .under { font-size: 12px; margin-top: .3rem }
"""

_BODY = """<h1>{title}</h1>
<p class="soft">Each token has the colour of its credit: credit −x {bar} +x, where x is the largest
absolute credit and is given below each text. Negative credit is underlined. Hover over a token for
its credit and its share: its absolute credit over the sum of all.</p>
<noscript><p><strong>This page needs JavaScript to show its texts.</strong></p></noscript>
<form>
<label class="field">search <input type="search" name="search" size="18"></label>
<label class="field">sort by <select name="sort"><option value="file">order of the file</option>
<option value="score">score, highest first</option><option value="-score">score, lowest first
</option><option value="length">length, longest first</option></select></label>
<label class="field">x is the largest credit <select name="scale">
<option value="own">of the text, by this method</option>
<option value="text">of the text, by any method</option>
<option value="all">of all texts</option></select></label>
<fieldset><legend>methods</legend>{boxes}</fieldset>
<span><button type="button" id="back">◀ back</button>
<button type="button" id="next">next ▶</button></span>
<span role="status" aria-live="polite" id="status"></span>
</form>
<div id="table"></div>
"""

_SCRIPT = r"""
"use strict";
const PAGE = 20;
const data = JSON.parse(document.getElementById("texts").textContent);
const form = document.forms[0], status = document.getElementById("status");
const names = data.methods.map(method => method.name);
const largest = values => values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
data.texts.forEach((text, index) => {
  text.index = index;
  text.words = (text.prompt + text.pieces.join("")).toLowerCase();
  text.limits = text.credit.map(largest);
});
const limitOfAll = largest(data.texts.map(text => largest(text.limits)));
const orders = {
  "file": (a, b) => a.index - b.index,
  "score": (a, b) => b.score - a.score || a.index - b.index,
  "-score": (a, b) => a.score - b.score || a.index - b.index,
  "length": (a, b) => b.pieces.length - a.pieces.length || a.index - b.index,
};
let view;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const methods = given.has("methods") ? given.get("methods").split(",") : names;
  const choice = (name, all) => all.includes(given.get(name)) ? given.get(name) : all[0];
  view = {
    search: given.get("search") || "",
    sort: choice("sort", Object.keys(orders)),
    scale: choice("scale", ["own", "text", "all"]),
    methods: names.filter(name => methods.includes(name)),
    page: Math.max(1, parseInt(given.get("page")) || 1),
  };
  for (const name of ["search", "sort", "scale"]) form.elements[name].value = view[name];
  for (const box of form.querySelectorAll("[name=method]"))
    box.checked = view.methods.includes(box.value);
}

function writeAddress() {
  const given = new URLSearchParams();
  if (view.search) given.set("search", view.search);
  if (view.sort !== "file") given.set("sort", view.sort);
  if (view.scale !== "own") given.set("scale", view.scale);
  if (view.methods.length < names.length) given.set("methods", view.methods.join(","));
  if (view.page > 1) given.set("page", view.page);
  history.replaceState(null, "", "#" + given.toString().replaceAll("%2C", ","));
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const signed = (value, digits) => (value < 0 ? "-" : "+") + Math.abs(value).toFixed(digits);
const short = value => value >= 0.095 ? value.toFixed(2) : String(+value.toPrecision(2));

function coloured(text, credit, limit) {
  const line = element("div", null, {class: "textgym-text"});
  if (text.prompt) line.append(element("span", text.prompt, {class: "prompt"}));
  const total = credit.reduce((sum, x) => sum + Math.abs(x), 0);
  text.pieces.forEach((piece, at) => {
    const value = credit[at], strength = limit > 0 ? Math.min(Math.abs(value) / limit, 1) : 0;
    const rgb = value < 0 ? data.scale.negative : data.scale.positive;
    const opacity = +(data.scale.opacity * strength).toPrecision(3);
    const share = total > 0 ? Math.round(100 * Math.abs(value) / total) : 0;
    const title = `"${piece.replaceAll("\n", "␊")}" credit ${signed(value, 4)}, share ${share}%`;
    const span = element("span", piece, {title, style: `background:rgba(${rgb},${opacity})`});
    if (value < 0 && -value >= data.scale.marked * limit) span.className = "negative";
    line.append(span);
  });
  return line;
}

function limitOf(text, method) {
  if (view.scale === "all") return limitOfAll;
  return view.scale === "text" ? largest(text.limits) : text.limits[method];
}

function draw() {
  const words = view.search.toLowerCase();
  const found = data.texts.filter(text => text.words.includes(words)).sort(orders[view.sort]);
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  view.page = Math.min(view.page, pages);
  const first = (view.page - 1) * PAGE, shown = found.slice(first, first + PAGE);
  const table = element("table", null), head = table.createTHead().insertRow();
  head.append(element("th", "text", {scope: "col"}));
  head.append(element("th", "score", {scope: "col", class: "number"}));
  for (const {name, about} of data.methods)
    if (view.methods.includes(name)) head.append(element("th", name, {scope: "col", title: about}));
  const body = table.createTBody();
  for (const text of shown) {
    const row = body.insertRow();
    row.append(element("th", String(text.index + 1), {scope: "row"}));
    row.append(element("td", signed(text.score, 2), {class: "number"}));
    names.forEach((name, method) => {
      if (!view.methods.includes(name)) return;
      const credit = text.credit[method], limit = limitOf(text, method);
      const cell = element("td", null, {class: "text"});
      cell.append(coloured(text, credit, limit));
      const sum = signed(credit.reduce((sum, x) => sum + x, 0), 2);
      cell.append(element("div", `sum ${sum}, x = ${short(limit)}`, {class: "under soft"}));
      row.append(cell);
    });
  }
  document.getElementById("table").replaceChildren(table);
  status.textContent = found.length
    ? `${first + 1} to ${first + shown.length} of ${found.length} texts` : "no text is found";
  document.getElementById("back").disabled = view.page === 1;
  document.getElementById("next").disabled = view.page === pages;
}

function change(changes) {
  Object.assign(view, {page: 1}, changes);
  draw();
  writeAddress();
}

form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", () => change({
  search: form.elements.search.value,
  sort: form.elements.sort.value,
  scale: form.elements.scale.value,
  methods: [...form.querySelectorAll("[name=method]:checked")].map(box => box.value),
}));
document.getElementById("back").addEventListener("click", () => change({page: view.page - 1}));
document.getElementById("next").addEventListener("click", () => change({page: view.page + 1}));
window.addEventListener("hashchange", () => { readAddress(); draw(); });
readAddress();
draw();
"""
