"""The HTML of the page: answers side by side, a prompt's tokens, next tokens, the lens."""

import base64
import difflib
import html
import re
from collections.abc import Sequence

from roadint.demo.requests import Update
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
    """Show a line for people.

    Args:
        text: The line.
        kind: "info" or "error".

    Returns:
        HTML.
    """
    role = "alert" if kind == "error" else "status"
    return f'<div class="ri-notice ri-{kind}" role="{role}">{html.escape(text)}</div>'


def cards(names: Sequence[str], update: Update, highlight: bool, stopped: bool = False) -> str:
    """Show answers side by side, with their languages and how fast they came.

    Args:
        names: The compositions.
        update: Their answers so far.
        highlight: Whether to mark differences from the base model's answer, where that is shown.
        stopped: Whether the answers were stopped.

    Returns:
        HTML.
    """
    base = update.texts[list(names).index("none")] if highlight and "none" in names else None
    if update.done or stopped:
        busy, state = False, ""
    else:
        busy, state = (
            True,
            f"waiting for {update.waiting} before you" if update.waiting else "writing",
        )
    articles = [
        _card(name, text, busy, state, None if name == "none" else base)
        for name, text in zip(names, update.texts, strict=True)
    ]
    footer = ""
    if update.tokens:
        when = "stopped after" if stopped else "so far" if busy else "in all"
        rate = update.tokens / update.seconds if update.seconds else 0.0
        footer = (
            f"{update.tokens} tokens {when}, {update.seconds:.1f} s, "
            f"{rate:.1f} tokens a second, one batch"
        )
    return f'{_side_by_side(articles)}<p class="ri-foot">{footer}</p>'


def language_badge(text: str) -> str:
    """The language of an answer, as a small label."""
    code = language_of(text)
    name = "no text" if code == EMPTY else _LANGUAGES.get(code, code)
    return f'<span class="ri-badge ri-{html.escape(code)}" lang="en">{html.escape(name)}</span>'


def prompt_tokens(tokens: Sequence[str], edited: Sequence[int]) -> str:
    """Show a prompt with its edited tokens marked.

    Args:
        tokens: The texts of the tokens.
        edited: The indices of those that are edited.

    Returns:
        HTML.
    """
    marked = set(edited)
    spans = []
    for index, token in enumerate(tokens):
        kind = "ri-edited" if index in marked else "ri-token"
        spans.append(f'<span class="{kind}">{html.escape(token).replace(chr(10), "↵")}</span>')
    footer = f"{len(marked)} of {len(tokens)} tokens are edited."
    return f'<div class="ri-prompt">{"".join(spans)}</div><p class="ri-foot">{footer}</p>'


def next_token_tables(next_tokens: Sequence[NextToken]) -> str:
    """Show how the distribution of an answer's first token moves.

    Args:
        next_tokens: One a composition.

    Returns:
        HTML.
    """
    articles = []
    for token in next_tokens:
        top = [(_token(text), f"{probability:.1%}") for text, probability in token.top]
        tables = _table("likeliest first tokens", top)
        if token.kl > 1e-9:
            moved = [(_token(text), f"{old:.1%}", f"{new:.1%}") for text, old, new in token.moved]
            tables += _table("most moved: untouched, with it", moved)
        articles.append(
            f'<article class="ri-card"><header><h3>{html.escape(token.composition)}</h3>'
            f'<span class="ri-state">KL {token.kl:.3f} nats</span></header>{tables}</article>'
        )
    return _side_by_side(articles)


def lens_table(names: Sequence[str], rows: Sequence[Sequence[Token]], first: int) -> str:
    """Show what the output of every layer would say next, marked where compositions differ.

    Args:
        names: The compositions.
        rows: For each composition, the token and its probability after each layer.
        first: The layer to begin with.

    Returns:
        HTML.
    """
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in names)
    body = []
    for layer in range(first, len(rows[0])):
        cells = []
        for text, probability in (row[layer] for row in rows):
            kind = "ri-changed" if text != rows[0][layer][0] else ""
            cells.append(f'<td class="{kind}">{_token(text)} {probability:.0%}</td>')
        body.append(f"<tr><th scope='row'>{layer}</th>{''.join(cells)}</tr>")
    top = f'<thead><tr><th scope="col">after layer</th>{head}</tr></thead>'
    table = f'<table class="ri-lens">{top}<tbody>{"".join(body)}</tbody></table>'
    return f'<div class="ri-scroll">{table}</div>'


def picture(png: bytes, description: str) -> str:
    """Show a picture that is in the page itself.

    Args:
        png: The file's bytes.
        description: The alternative text.

    Returns:
        HTML.
    """
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img class="ri-picture" alt="{html.escape(description)}" src="{source}">'


def _card(name: str, text: str, busy: bool, state: str, base: str | None) -> str:
    """One answer; its language and differences from `base` are shown when it is complete."""
    name = html.escape(name)
    shown = html.escape(text) if busy or base is None else _marked(base, text)
    return (
        f'<article class="ri-card" data-composition="{name}" aria-busy="{str(busy).lower()}">'
        f"<header><h3>{name}</h3>{'' if busy else language_badge(text)}"
        f'<span class="ri-state">{state}</span><button class="ri-copy" type="button" '
        f'aria-label="Copy the answer of {name}">Copy</button></header>'
        f'<p class="ri-text">{shown or "&nbsp;"}</p></article>'
    )


def _side_by_side(articles: Sequence[str]) -> str:
    return f'<div class="ri-cards">{"".join(articles)}</div>'


def _table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{caption}</caption>{body}</table>"


def _token(text: str) -> str:
    shown = html.escape(text).replace(" ", "␣").replace("\n", "↵") or "∅"
    return f"<bdi><code>{shown}</code></bdi>"  # right-to-left scripts turn nothing around


def _marked(base: str, text: str) -> str:
    """Words of `text` that are not where `base` has them, marked; its spaces and lines stay."""
    words = re.findall(r"\S+\s*", text)
    stripped = [word.strip() for word in words]
    matcher = difflib.SequenceMatcher(None, base.split(), stripped, autojunk=False)
    pieces = []
    for kind, _, _, start, end in matcher.get_opcodes():
        run = "".join(words[start:end])
        shown, space = html.escape(run.rstrip()), run[len(run.rstrip()) :]
        same = kind == "equal" or not shown
        pieces.append(shown + space if same else f"<mark>{shown}</mark>{space}")
    return "".join(pieces)
