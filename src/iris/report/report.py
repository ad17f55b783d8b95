"""results/ -> the tables of README.md and docs/, and the pictures. The same records give the same bytes.

Run as: iris report             # writes what is out of date
        iris report --check     # writes nothing, fails where something is

A table stands in a document between `<!-- iris:NAME WORDS -->` and `<!-- /iris:NAME -->`, NAME being one of TABLES and
WORDS what it takes (runs, for example); a picture lies in results/. Only finished, full records enter; what is left out
is told.
"""

import re
import shlex
from pathlib import Path
from typing import Any

from .. import InputError, RunError, compare, record
from ..evaluate.tasks import FIXED, TASKS
from . import pictures
from .tables import TABLES, Lab, short

MARKER = re.compile(r"<!-- iris:(\w+)([^>]*?) -->\n(.*?)(?:<!-- /iris:\1 -->|\Z)", re.DOTALL)


def report(results: Path, documents: list[Path], check: bool = False) -> None:
    """Fill the documents and draw the pictures of `results`; with `check` write nothing, and RunError names what is out
    of date. InputError: a document that is not there, a wrong marker, a damaged record, records that cannot be
    compared."""
    records = record.load(results)
    lab = Lab(results, records, compare.evaluations(records))
    stale = []
    for document in documents:
        try:
            before = document.read_text(encoding="utf-8")
        except OSError:
            raise InputError(f"there is no {document}; run this where it is, or name the documents to fill") from None
        after = before
        for found in MARKER.finditer(before):
            name, words, _ = found.groups()
            if name not in TABLES or not found[0].endswith(end := f"<!-- /iris:{name} -->"):
                known = ", ".join(TABLES)
                raise InputError(f"{document}: <!-- iris:{name} --> is none of {known}, or has no end after it")
            content = TABLES[name](lab, shlex.split(words)) or "No record of this kind yet."
            written = f"<!-- iris:{name}{words} -->\n{content}\n{end}"
            if written != found[0]:
                stale.append(f"the table iris:{name} of {document}")
                after = after.replace(found[0], written)
        if after != before and not check:
            record.write_atomic(document, after.encode())
    for picture, shown in ((results / "scores.png", scores(lab)), (results / "forms.png", kept_forms(lab))):
        stale += [str(picture)] if pictures.write(picture, shown, check) else []
    told = ", ".join(dict.fromkeys(stale))
    if check and stale:
        raise RunError(f"out of date: {told}; run `iris report` and commit what it writes")
    print(f"wrote {told}" if stale else "everything is up to date")


def scores(lab: Lab) -> list[dict[str, Any]]:
    """What scores.png shows, in JSON types: one entry a panel, which is a task of a group."""
    shown: list[dict[str, Any]] = []
    for group in lab.groups:
        base = group[0].record
        compared = [row for one in group if one.comparison for row in one.comparison.rows if row.verdict]
        for task in (task for task in TASKS if task in base.tasks and compared):
            entry, runs = base.tasks[task], [row for row in compared if row.task == task]
            arrow = "higher" if entry["higher_is_better"] else "lower"
            panel = {"model": short(base.model["id"]), "task": TASKS[task].title, "base": entry["value"]}
            panel["label"] = f"{entry['metric']} ({arrow} is better), n = {entry['n']:,}"
            panel["runs"] = [
                {"name": row.record, "value": row.tuned, "low": row.base + row.low, "high": row.base + row.high}
                | {"clear": row.verdict != "within noise"}
                for row in runs
            ]
            shown.append(panel)
    return shown


def kept_forms(lab: Lab) -> list[dict[str, Any]]:
    """What forms.png shows: of each run the share of its poems that keep each fixed form: strictly, or where that was
    not measured by the generous judge, which what is strict passes as well."""
    landing = lab.results / "voice" / "landing.json"
    told = record.read(landing).measures["rows"] if landing.exists() else []
    shown = [
        {"name": f"{row['who']}, end words named", "strict": True, "shares": {form: row[form] for form in FIXED}}
        for row in told
        if row["who"].startswith("voice")
    ]
    if poet := lab.records.get(lab.results / "poet.json"):
        shares = {row["form"]: row["strict"] for row in poet.measures["rows"]}
        shown.append({"name": "voice, by the poet", "strict": True, "shares": shares})
    for one in (one for one in lab.records.values() if one.kind == "evaluation"):
        for task, entry in one.tasks.items():
            for judge in ("strict", "keeps") if TASKS[task].by_form else ():
                shares = {form: other["value"] for form in FIXED if (other := entry["others"].get(f"{form} {judge}"))}
                if shares:
                    name = f"{one.name}, end words named" if task == "poetry_plan" else one.name
                    shown.append({"name": name, "strict": judge == "strict", "shares": shares})
                    break
    return shown
