"""What a page without a server runs of Iris, by Pyodide: assets/verse.js calls these functions. Values come and go as
JSON."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any

from .. import InputError
from ..poetry.forms import FORMS, judge
from ..poetry.keep_form import Draft, Drafts, Ends, compose
from ..poetry.plan import Likely, end_words
from ..poetry.wish import Poem, Wish
from .sheet import told


@dataclass
class Writing:
    """The poem in work: what it is, since when, how much of it stands, and what its decisions wait for."""

    wish: Wish
    composing: Generator[Likely | Drafts | Ends | str, Any, None]
    started: float
    text: str = ""
    tokens: int = 0
    asked: Likely | Drafts | Ends | str = ""


now: Writing | None = None


def ready() -> str:
    """Says what runs this."""
    return json.dumps(f"Python {platform.python_version()}")


def read() -> str:
    """Everything read that a poem in a form needs: half a second in a browser, for which free verse does not wait."""
    return json.dumps(len(end_words()))


def begin(wish: str, taught: str, count: str) -> str:
    """Begin the poem of a wish, as assets/page.js has it. taught, count: as compose has them. Answers as `go_on`."""
    global now
    fields = json.loads(wish)
    keep_form, _ = fields.pop("keep_form"), fields.pop("voice", "")
    asked = Wish(**fields)
    try:
        asked.check()
    except InputError as error:
        return json.dumps({"refused": f"{str(error)[0].upper()}{str(error)[1:]}."})
    kept = keep_form and asked.form != "free"
    composing = compose(asked, json.loads(taught), json.loads(count)) if kept else pour(asked)
    now = Writing(asked, composing, time.perf_counter())
    return go_on("null")


def pour(wish: Wish) -> Generator[Drafts | str, Any, None]:
    """A poem as it comes, in the terms of compose."""
    limit = FORMS[wish.form].tokens * (2 if wish.length == "long" else 1)
    (draft,) = yield Drafts(wish.request(), seed=wish.seed, temperature=wish.temperature, max_tokens=limit)
    yield draft.text


def go_on(answer: str) -> str:
    """The next step of the poem, after the answer to the last: {"text": what stays}, {"likely": a text}, {"drafts":
    the fields of a Drafts} or, at its end, {"poem": what the leaf tells}."""
    assert now
    value = json.loads(answer)
    if isinstance(now.asked, Drafts):
        value = [Draft(**draft) for draft in value]
        now.tokens += sum(draft.tokens for draft in value)
    try:
        now.asked = now.composing.send(value)
        while isinstance(now.asked, Ends):  # each would take a browser as long as eight tokens
            now.asked = now.composing.send([0.0] * len(now.asked.lines))
    except StopIteration:
        return json.dumps({"poem": told(Poem.of(now.text, now.wish.form, True, now.tokens, now.started))})
    if isinstance(now.asked, str):
        now.text += now.asked
        return json.dumps({"text": now.asked})
    if isinstance(now.asked, Likely):
        return json.dumps({"likely": now.asked.prompt})
    return json.dumps({"drafts": {key: value for key, value in vars(now.asked).items() if key != "settled"}})


def settled(text: str) -> str:
    """As Drafts.settled."""
    assert now and isinstance(now.asked, Drafts)
    return json.dumps(now.asked.settled(json.loads(text)))


def verdicts(poems: str) -> str:
    """Of each [poem, form] the verdict of forms.judge."""
    return json.dumps([asdict(judge(*each)) for each in json.loads(poems)])
