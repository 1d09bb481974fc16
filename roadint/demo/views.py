"""What the pages show, as HTML: answers side by side, the tokens of a prompt, next tokens, the logit lens; and exports."""

import base64
import difflib
import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from roadint.demo.engine import Settings, Update
from roadint.evaluation.language import EMPTY, language_of
from roadint.inspection.lens import NextToken, Token

_LANGUAGES = {
    "de": "German",
    "en": "English",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "nl": "Dutch",
    "pt": "Portuguese",
}


def notice(text: str, kind: str = "info") -> str:
    """A line for people; kind: "info" or "error"."""
    return f'<div class="ri-notice ri-{kind}" role="{"alert" if kind == "error" else "status"}">{html.escape(text)}</div>'


def cards(names: Sequence[str], update: Update, highlight: bool, stopped: bool = False) -> str:
    """The answers side by side, each with its language, rate and what differs from the untouched answer."""
    base = update.texts[list(names).index("none")] if "none" in names and highlight else None
    busy = not update.done and not stopped
    rate = update.tokens / update.seconds if update.seconds else 0.0
    found = []
    for name, text in zip(names, update.texts, strict=True):
        state = (
            ""
            if not busy
            else f"waiting for {update.waiting} before you"
            if update.waiting
            else "writing"
        )
        badge = language_badge(text) if not busy else ""
        shown = (
            _marked(base, text)
            if base is not None and name != "none" and not busy
            else html.escape(text)
        )
        found.append(
            f'<article class="ri-card" data-composition="{html.escape(name)}" aria-busy="{str(busy).lower()}">'
            f'<header><h3>{html.escape(name)}</h3>{badge}<span class="ri-state">{state}</span>'
            f'<button class="ri-copy" type="button" aria-label="Copy the answer of {html.escape(name)}">Copy</button></header>'
            f'<p class="ri-text">{shown or "&nbsp;"}</p></article>'
        )
    word = "stopped after" if stopped else "so far" if busy else "in all"
    foot = (
        f"{update.tokens} tokens {word}, {update.seconds:.1f} s, {rate:.1f} tokens a second, one batch"
        if update.tokens
        else ""
    )
    return f'<div class="ri-cards">{"".join(found)}</div><p class="ri-foot">{foot}</p>'


def language_badge(text: str) -> str:
    """The language of an answer, as a small label."""
    code = language_of(text)
    name = "no text" if code == EMPTY else _LANGUAGES.get(code, code)
    return f'<span class="ri-badge ri-{html.escape(code)}" lang="en">{html.escape(name)}</span>'


def prompt_tokens(tokens: Sequence[str], edited: Sequence[int]) -> str:
    """The prompt's tokens, the edited ones marked."""
    marked = set(edited)
    pieces = [
        f'<span class="{"ri-edited" if place in marked else "ri-token"}">{html.escape(token).replace(chr(10), "↵")}</span>'
        for place, token in enumerate(tokens)
    ]
    return f'<div class="ri-prompt">{"".join(pieces)}</div><p class="ri-foot">{len(marked)} of {len(tokens)} tokens are edited.</p>'


def next_token_tables(found: Sequence[NextToken]) -> str:
    """How the distribution of the first token of the answer moves."""
    parts = []
    for each in found:
        top = "".join(
            f"<tr><td>{_token(text)}</td><td>{probability:.1%}</td></tr>"
            for text, probability in each.top
        )
        moved = "".join(
            f"<tr><td>{_token(text)}</td><td>{before:.1%}</td><td>{after:.1%}</td></tr>"
            for text, before, after in each.moved
        )
        parts.append(
            f'<article class="ri-card"><header><h3>{html.escape(each.composition)}</h3><span class="ri-state">KL {each.kl:.3f} nats'
            f"</span></header><table><caption>likeliest first tokens</caption>{top}</table>"
            + (
                f"<table><caption>most moved: untouched, with it</caption>{moved}</table></article>"
                if each.kl > 1e-9
                else "</article>"
            )
        )
    return f'<div class="ri-cards">{"".join(parts)}</div>'


def lens_table(names: Sequence[str], rows: Sequence[Sequence[Token]], first: int) -> str:
    """What each layer's output would say next, from layer `first` on; marked where it differs from the first composition's."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in names)
    body = []
    for layer in range(first, len(rows[0])):
        base = rows[0][layer][0]
        tokens = [(*row[layer], "ri-changed" if row[layer][0] != base else "") for row in rows]
        cells = "".join(
            f'<td class="{kind}">{_token(text)} {probability:.0%}</td>'
            for text, probability, kind in tokens
        )
        body.append(f"<tr><th scope='row'>{layer}</th>{cells}</tr>")
    top = f'<thead><tr><th scope="col">after layer</th>{head}</tr></thead>'
    return f'<div class="ri-scroll"><table class="ri-lens">{top}<tbody>{"".join(body)}</tbody></table></div>'


def picture(png: bytes, description: str) -> str:
    """A PNG in the page itself."""
    return f'<img class="ri-picture" alt="{html.escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def record(
    prompt: str, names: Sequence[str], update: Update, settings: Settings, about: Mapping[str, Any]
) -> dict[str, Any]:
    """A comparison as plain values, for an export."""
    answers = [
        {"composition": name, "text": text, "language": language_of(text)}
        for name, text in zip(names, update.texts, strict=True)
    ]
    return {
        **about,
        "prompt": prompt,
        "settings": vars(settings),
        "answers": answers,
        "tokens": update.tokens,
        "seconds": round(update.seconds, 2),
    }


def as_json(comparison: Mapping[str, Any]) -> str:
    """An export for machines."""
    return json.dumps(comparison, indent=2, ensure_ascii=False) + "\n"


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """An export for people."""
    lines = [
        f"**{_cell(comparison['prompt'])}**",
        "",
        "| composition | language | answer |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{each['composition']}` | {each['language']} | {_cell(each['text'])} |"
        for each in comparison["answers"]
    ]
    settings = ", ".join(f"{name} {value}" for name, value in comparison["settings"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{comparison['model']}, checkpoint {comparison['checkpoint']}; {settings}",
            "",
        ]
    )


def _cell(text: str) -> str:
    return html.escape(
        " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|"), quote=False
    )


def _token(text: str) -> str:
    shown = html.escape(text).replace(" ", "␣").replace("\n", "↵") or "∅"
    return f"<bdi><code>{shown}</code></bdi>"  # a token of a script from right to left turns nothing around


def _marked(base: str, text: str) -> str:
    """Words of `text` that are not where `base` has them, marked; its spaces and lines as they are."""
    words = re.findall(r"\S+\s*", text)
    pieces = []
    matcher = difflib.SequenceMatcher(
        None, base.split(), [word.strip() for word in words], autojunk=False
    )
    for kind, _, _, start, end in matcher.get_opcodes():
        run = "".join(words[start:end])
        shown, space = html.escape(run.rstrip()), run[len(run.rstrip()) :]
        pieces.append(
            shown + space if kind == "equal" or not shown else f"<mark>{shown}</mark>{space}"
        )
    return "".join(pieces)
