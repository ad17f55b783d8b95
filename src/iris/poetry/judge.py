"""Does this text keep its form? One poem from a text, many from JSON rows.

Run as: iris judge FILE.txt | FILE.jsonl[.gz] | -  [--form FORM] [--strict] [--json]
"""

import codecs
import gzip
import html
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import InputError
from .forms import FORMS, FUNCTION_WORDS, Verdict, judge
from .sound import cmu_dictionary, words_of

SHOWN = 5  # rows that an error names
_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?=.*[:=])(?:.*\n)*?\1[ \t]*(?:\n|\Z)")
_MARKUP = (  # what marks up a text, and what stands for it
    (re.compile(r"<!--.*?-->|<(script|style|head)\b.*?</\1>", re.DOTALL | re.IGNORECASE), ""),
    (re.compile(r"[ \t]*<br\b[^<>]*>[ \t]*\n?", re.IGNORECASE), "\n"),
    (re.compile(r"(?:\s*</?(?:p|h\d|blockquote|pre|ul|ol)\b[^<>]*>\s*)+", re.IGNORECASE), "\n\n"),
    (re.compile(r"(?:\s*</?(?:li|div|tr)\b[^<>]*>\s*)+", re.IGNORECASE), "\n"),
    (re.compile(r"</?[a-zA-Z][^<>]*>|^[ \t]*(?:```|~~~)\w*[ \t]*$|^[ \t]*>+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*#{1,6}[ \t]+(.+)$|\A\s*\*\*(.+)\*\*[ \t]*$", re.MULTILINE), r"\n\1\2\n"),
    (re.compile(r"(?<!\d)[ \t]+//(?:[ \t]+|[ \t]*\n|\Z)"), "\n\n"),
    (re.compile(r"(?<!\d)[ \t]+/(?:[ \t]+|[ \t]*\n|\Z)"), "\n"),
)
_LIST_NUMBER = re.compile(r"\(?(\d+)[.):][ \t]+(?=\S)")
_STANZA_NUMBER = re.compile(r"(?:\d+|[IVXLC]+)[.)]?")
_SIGNED = re.compile(r"[—–~©([-]|by ", re.IGNORECASE)
_LINKS = frozenset("of the de von van and in by".split())  # small words within a name


def judge_file(file: str, form: str | None, as_json: bool, strict: bool = False) -> None:
    """Judge every poem of `file` ("-": standard input) and print a line, or a JSON object, for each: whether it keeps
    the form, by the strict judge if `strict`, and why not. InputError for an unknown form or a file that cannot be
    read, and at the end for the rows that hold no English poem."""
    form = _known(form)
    refused = []
    for where, row in _rows(file):
        try:
            text, own = _poem(row)
            verdict, left_out = judge_text(text, form or _known(own))
        except InputError as error:
            refused.append(f"{where}: {error}")
            continue
        reasons = verdict.faults if strict else verdict.reasons
        if as_json:
            found = asdict(verdict) | {"reasons": list(reasons), "left_out": left_out}
            print(json.dumps(found, ensure_ascii=False))
            continue
        name = f"{verdict.form}, strictly" if strict and verdict.strict is not None else verdict.form
        first = next((line.text for line in verdict.lines), "")
        print(f"{'breaks' if reasons else 'keeps'} {name} ({verdict.score:.2f})  {first}")
        for note in (*reasons, *([f"left out as no verse: {' | '.join(left_out)}"] if left_out else [])):
            print(f"    {note}")
    if refused:
        more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        raise InputError("; ".join(refused[:SHOWN]) + more)


def judge_text(text: str, form: str | None) -> tuple[Verdict, list[str]]:
    """The verdict on a text as somebody saved it, and the lines left out of it: a title, a signature, the numbers of
    stanzas, unless the text keeps its form with them. InputError if it is not English."""
    stanzas = clean(text)
    lines = [line for stanza in stanzas for line in stanza]
    letters = [c for c in "".join(lines) if c.isalpha()]
    foreign = sum(c >= "\u0250" and not "\u1e00" <= c < "\u1f00" for c in letters)  # of no Latin script
    words = [word.strip("'") for line in lines for word in words_of(line)]
    known = sum(word in cmu_dictionary() for word in words)
    small = sum(word in FUNCTION_WORDS for word in words)
    # Of 2,792 public poems, old spellings and dialects among them, none has so few words of both kinds.
    if 2 * foreign > len(letters) or (len(words) > 5 and known < 0.75 * len(words) and small < 0.13 * len(words)):
        raise InputError("this is not English, and the judge knows English only")
    verse, left_out = _set_apart(stanzas)
    with_all, without = ([line for part in parts for line in (*part, "")] for parts in (stanzas, verse))
    whole = judge(with_all, form)
    if not left_out or (whole.keeps and whole.form != "free"):
        return whole, []
    return judge(without, form), left_out


def clean(text: str) -> list[list[str]]:
    """The stanzas of a text: no front matter, tags, entities, headings' and lists' marks, no lines without a word. A
    line break may be written <br> or " / ", or as \\n where there is no other; lines that all stand apart are one
    stanza."""
    text = "\n".join(text.encode(errors="replace").decode().splitlines())
    text = _FRONT_MATTER.sub("", text)
    if "\n" not in text.strip():
        text = text.replace("\\n", "\n")
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    lines = [line.strip() if words_of(line) else "" for line in html.unescape(text).splitlines()]
    numbers = [int(found[1]) for line in lines if (found := _LIST_NUMBER.match(line))]
    if len(numbers) > 1 and all(b in (1, a + 1) for a, b in zip([0, *numbers], numbers, strict=False)):
        lines = [_LIST_NUMBER.sub("", line, count=1) if _LIST_NUMBER.match(line) else line for line in lines]
    stanzas = [block.split("\n") for block in re.split(r"\n{2,}", "\n".join(lines).strip("\n")) if block]
    if len(stanzas) > 2 and all(len(stanza) == 1 for stanza in stanzas):
        return [[line for (line,) in stanzas]]
    return stanzas


def _set_apart(stanzas: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """The stanzas without what stands apart from them, and the lines of that: a title, the numbers of stanzas, a
    signature."""
    before: list[str] = []
    after: list[str] = []
    while len(before) < 2 and max(map(len, stanzas[1:]), default=0) > 1:
        title, *author = stanzas[0]
        if title.endswith((",", ";", ":", "—", "-")) or not all(line.lower().startswith("by ") for line in author):
            break
        before, stanzas = before + stanzas[0], stanzas[1:]
    last = stanzas[-1] if stanzas else []
    signs = all(_is_name(line) or (_SIGNED.match(line) and len(line.split()) < 9) for line in last)
    if len(stanzas) > 1 and len(last) < 3 and signs:
        after, stanzas = last, stanzas[:-1]
    elif len(last) > 1 and last[-1][0] in "—–-©" and _is_name(last[-1]):
        after, stanzas = last[-1:], [*stanzas[:-1], last[:-1]]
    verse, numbers = [], []
    for stanza in stanzas:
        numbered = _STANZA_NUMBER.fullmatch(stanza[0])
        numbers += stanza[:1] if numbered else []
        verse.append(stanza[1:] if numbered else stanza)
    return [stanza for stanza in verse if stanza], before + numbers + after


def _is_name(line: str) -> bool:
    words = re.findall(r"[^\W_]+", line)
    return len(words) < 7 and all(word[0].isupper() or word.isdigit() or word in _LINKS for word in words)


def _known(form: Any) -> str | None:
    """A form's name in small letters; None for None or "". InputError for any other."""
    name = form.strip().lower() if isinstance(form, str) else form
    if name not in (None, "", *FORMS):
        raise InputError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    return name or None


def _poem(row: Any) -> tuple[str, Any]:
    """The poem of a row (JSON or its value), and the form that it tells, if any. InputError if there is no poem."""
    try:
        row = json.loads(row) if isinstance(row, str) else row
    except ValueError:
        raise InputError("it is not JSON; mend or remove that line") from None
    lines = row.get("lines", row.get("text")) if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(lines, list | str):
        raise InputError("it has neither `lines` (a list of texts) nor `text`")
    for number, line in enumerate(lines if isinstance(lines, list) else [], 1):
        if not isinstance(line, str):
            raise InputError(f"line {number} is {json.dumps(line)[:60]}, not text")
    return lines if isinstance(lines, str) else "\n".join(lines), row.get("form")


def _rows(file: str) -> Iterator[tuple[str, Any]]:
    """Where each row of a file stands, and the row; a text is one row. InputError for what cannot be read."""
    if file != "-" and not Path(file).is_file():
        raise InputError(f"there is no file {file}; give a text, a .jsonl[.gz] file, or - for standard input")
    name = "standard input" if file == "-" else file
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        text = raw.decode("utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # so UTF-16 without its mark looks
        raise InputError(f"{name} is not UTF-8; save it as UTF-8")
    kind = re.search(r"\.(json|jsonl|ndjson)(\.gz)?$", file.lower())
    rows: list[Any] = text.split("\n") if kind else [{"text": text}]
    if kind and kind[1] == "json":
        with suppress(ValueError):  # else it is JSON Lines by another name
            whole = json.loads(text)
            rows = whole if isinstance(whole, list) else [whole]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str) or row.strip():
            yield f"{file}, row {number}" if kind else name, row
