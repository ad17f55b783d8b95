"""The page as HTML and a poem as JSON; assets/page.js and assets/leaf.js bring them to life.

What comes from a setting is escaped here. A theme and a poem are never HTML: the script shows both as text.
"""

import html
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from ..poetry.forms import FORMS, judge
from ..poetry.wish import LENGTHS, MOODS, OF_ANY_LENGTH, Poem


def markup(template: Path, voices: dict[str, str], foot: str, where: str = "on two CPU cores") -> str:
    """The whole page. voices: what it calls each of them; foot: HTML for its last line; where: poems are written."""
    names = {form: "free verse" if form == "free" else form for form in FORMS}
    return Template(template.read_text(encoding="utf-8")).substitute(
        forms=_radios("form", names, {form: " data-lengths" for form in OF_ANY_LENGTH}),
        moods=_options(MOODS),
        lengths=_options(LENGTHS),
        voices=_radios("voice", voices, {}),
        alone=" hidden" if len(voices) == 1 else "",
        foot=foot,
        where=where,
    )


def _radios(field: str, names: dict[str, str], extra: dict[str, str]) -> str:
    rows = (
        f'<label><input type="radio" name="{field}" value="{key}"{extra.get(key, "")}{" checked" * (number == 0)}>'
        f"<span>{html.escape(name)}</span></label>"
        for number, (key, name) in enumerate(names.items())
    )
    return "".join(rows)


def _options(values: Iterable[str]) -> str:
    return '<option value="">any</option>' + "".join(f"<option>{value}</option>" for value in values)


def told(poem: Poem) -> dict[str, Any]:
    """What the leaf tells of a finished poem: text, seconds, marks, kept and why, as assets/leaf.js explains them."""
    state: dict[str, Any] = {"text": poem.text, "seconds": poem.seconds, "marks": [], "kept": None}
    if poem.form == "free" or not poem.text:
        return state
    verdict, metre = judge(poem.text, poem.form), FORMS[poem.form].metre
    for number, line in enumerate(verdict.lines):
        off = poem.form == "haiku" and (number >= len(metre) or line.count != metre[number][0])
        state["marks"].append([line.count, line.rhyme, off])
    return state | {"kept": verdict.keeps, "why": "".join(verdict.reasons[:1])}
