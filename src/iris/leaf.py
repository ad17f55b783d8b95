"""The leaf of the book as HTML: the poem with its marks.

Titles are the visitor's words and poems the model's: both are shown as text, whatever they hold."""

from __future__ import annotations

import html
import re

from .poet import Poem
from .poetry.verse import HAIKU, Line, judge


def leaf(
    title: str = "",
    text: str = "",
    *,
    form: str = "",
    note: str = "",
    foot: str = "",
    busy: bool = False,
    poem: Poem | None = None,
) -> str:
    """One leaf. While `busy`, the last word is left out until it is whole, so that no word ever jumps to the next line.
    With a `poem` its lines are marked, and the note says whether it keeps its form. foot: the small print."""
    if busy:
        text = text[: max(text.rfind(" "), text.rfind("\n")) + 1]
    verdict = judge(text, poem.form) if poem and text.strip() else None
    marked = verdict is not None and verdict.form != "free"
    stanzas, number = "", 0
    for stanza in re.split(r"\n\s*\n", text):
        rows = ""
        for line in filter(None, map(str.strip, stanza.splitlines())):
            mark = _mark(verdict.lines[number], number, verdict.form) if verdict and marked else ""
            words = html.escape(line)
            rows += f'<span class="line" data-text="{words}">{mark}{words}</span>'
            number += 1
        stanzas += f"<p>{rows}</p>" if rows else ""
    told = html.escape(note)
    if verdict and not note:
        name = "free verse" if verdict.form == "free" else f"a {verdict.form}"
        told = f"<b>{name}, kept</b>" if verdict.keeps else html.escape(f"not quite {name}: {verdict.reasons[0]}")
    body = stanzas or (f'<p class="first">{told}</p>' if told else "")
    small = f"<span>{told if stanzas else ''}</span><span>{html.escape(foot)}</span>"
    return (
        f'<article class="sheet" data-form="{html.escape(form)}" aria-live="polite" aria-busy="{str(busy).lower()}">'
        f"<h2{'' if title else ' aria-hidden=true'}>{html.escape(title)}</h2>"
        f'<div class="verse">{body}</div><footer>{small}</footer></article>'
    )


def _mark(line: Line, number: int, form: str) -> str:
    """The mark beside a line: its syllables, and the letter of its rhyme; "off" where a haiku's count is not kept."""
    wanted = HAIKU[number] if form == "haiku" and number < len(HAIKU) else None
    count = wanted if wanted in line.syllables else min(line.syllables)
    off = " off" if form == "haiku" and wanted != count else ""
    told = f"{count} syllables" + (f", rhyme {line.rhyme}" if line.rhyme else "")
    shown = f"{count} {line.rhyme}".strip()
    return f'<span class="mark{off}" role="img" aria-label="{told}" title="{told}">{shown}</span>'
