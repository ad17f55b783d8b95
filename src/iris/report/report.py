"""results/ -> the tables of README.md and docs/, and a picture of the scores. The same records give the same bytes.

Run as: iris report             # writes what is out of date
        iris report --check     # writes nothing, fails where something is

A table stands in a document between `<!-- iris:NAME WORDS -->` and `<!-- /iris:NAME -->`, NAME being one of TABLES and
WORDS what it takes (runs, for example); the picture lies in results/. Only finished, full records enter; what is left
out is told.
"""

import re
import shlex
from pathlib import Path

from .. import InputError, RunError, compare, record
from . import pictures
from .tables import TABLES, Lab

MARKER = re.compile(r"<!-- iris:(\w+)([^>]*?) -->\n(.*?)(?:<!-- /iris:\1 -->|\Z)", re.DOTALL)


def report(results: Path, documents: list[Path], check: bool = False) -> None:
    """Fill the documents and draw the scores of `results`; with `check` write nothing, and RunError names what is out
    of date. InputError: a wrong marker, a damaged record, records that cannot be compared."""
    lab = Lab(results, compare.evaluations(record.load(results)))
    stale = []
    for document in documents:
        before = after = document.read_text(encoding="utf-8")
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
    if pictures.write(results / "scores.png", lab.groups, check):
        stale.append(str(results / "scores.png"))
    told = ", ".join(dict.fromkeys(stale))
    if check and stale:
        raise RunError(f"out of date: {told}; run `iris report` and commit what it writes")
    print(f"wrote {told}" if stale else "everything is up to date")
