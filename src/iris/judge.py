"""`iris judge`: does this text keep its form? Reads one poem from a text file, or many from JSON Lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import data
from .errors import InputError
from .poetry import verse
from .recipe import one_of


def judge_file(file: str, form: str | None, as_json: bool) -> None:
    """Judge every poem of `file` and print a line (or a JSON object) for each. InputError if a row holds no poem."""
    if form is not None:
        one_of(form, verse.FORMS, "form")
    for text, own_form in _poems(file):
        verdict = verse.judge(text, form or (own_form if own_form in verse.FORMS else None))
        if as_json:
            print(json.dumps(verdict.as_dict(), ensure_ascii=False))
        else:
            first = next((line.text for line in verdict.lines), "")
            reasons = "".join(f"\n    {reason}" for reason in verdict.reasons)
            print(f"{'keeps' if verdict.keeps else 'breaks'} {verdict.form} ({verdict.score:.2f})  {first}{reasons}")


def _poems(file: str) -> Iterator[tuple[str, str | None]]:
    if file == "-":
        yield sys.stdin.read(), None
        return
    path = Path(file)
    if path.suffix == ".txt":
        if not path.is_file():
            raise InputError(f"there is no file {path}; give a .txt or .jsonl[.gz] file, or - for standard input")
        yield path.read_text(encoding="utf-8"), None
        return
    for number, row in enumerate(data.read_file(path), 1):
        yield _text(row, f"{path}, row {number}"), row.get("form")


def _text(row: Any, where: str) -> str:
    if isinstance(row, dict):
        if isinstance(row.get("lines"), list):
            return "\n".join(str(line) for line in row["lines"])
        if isinstance(row.get("text"), str):
            return str(row["text"])
    raise InputError(f"{where} has neither `lines` (a list) nor `text`")
