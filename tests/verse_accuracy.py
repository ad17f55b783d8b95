"""How well `iris.poetry.verse.judge` agrees with labelled public poems.

    PYTHONPATH=src python tests/verse_accuracy.py POEMS.jsonl.gz

Rows need `lines` (an empty string is a stanza break), `form`, `rhyme` (the annotated scheme or null) and `author`.
Only poems labelled haiku, limerick, couplet, quatrain or sonnet count; "free" is left out, since it accepts anything.

recall     of a group of poems labelled X, the share for which judge(poem, X).keeps.
precision  of the poems with any of the five labels for which judge(poem, X).keeps, the share labelled X.
false accept, X as Y   of the poems labelled X, the share for which judge(poem, Y).keeps, Y another form.

A quatrain AABB is also a row of couplets, and the labels call the same thing sometimes one and sometimes the other.
The judge calls a poem in stanzas of four lines a quatrain. Couplet-labelled poems printed wholly in such stanzas are
therefore one group of their own, "couplet in fours": both labels are true of them, so taking them for quatrains is
no false accept, and not taking them for couplets is no fault of the ear. Every figure is also given with them.
"""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iris.poetry.verse import judge

RHYMED = ("haiku", "limerick", "couplet", "quatrain", "sonnet")
Poem = dict[str, Any]


def read(path: str | Path) -> list[Poem]:
    """The poems of a gzipped JSON Lines file that carry one of the five labels."""
    with gzip.open(path, "rt", encoding="utf-8") as rows:
        return [poem for row in rows if (poem := json.loads(row))["form"] in RHYMED]


def stanza_sizes(poem: Poem) -> list[int]:
    """The number of lines of each stanza."""
    sizes = [0]
    for line in poem["lines"]:
        if line.strip():
            sizes[-1] += 1
        elif sizes[-1]:
            sizes.append(0)
    return [size for size in sizes if size]


def in_fours(poem: Poem) -> bool:
    """Whether a couplet-labelled poem is printed wholly in stanzas of four lines."""
    return poem["form"] == "couplet" and set(stanza_sizes(poem)) == {4}


GROUPS: dict[str, tuple[str, Callable[[Poem], bool]]] = {
    "limerick, five lines": ("limerick", lambda p: sum(stanza_sizes(p)) == 5),
    "limerick, all": ("limerick", lambda p: True),
    "couplet, annotated": ("couplet", lambda p: bool(p["rhyme"])),
    "couplet, annotated, not in fours": ("couplet", lambda p: bool(p["rhyme"]) and not in_fours(p)),
    "couplet, all": ("couplet", lambda p: True),
    "quatrain, annotated": ("quatrain", lambda p: bool(p["rhyme"])),
    "quatrain, all": ("quatrain", lambda p: True),
    "sonnet, annotated, 14 lines": ("sonnet", lambda p: bool(p["rhyme"]) and sum(stanza_sizes(p)) == 14),
    "sonnet, 14 lines": ("sonnet", lambda p: sum(stanza_sizes(p)) == 14),
    "sonnet, all": ("sonnet", lambda p: True),
    "haiku, L. G. Alexander": ("haiku", lambda p: "Alexander" in p["author"]),
    "haiku, all": ("haiku", lambda p: True),
}


def measure(poems: list[Poem]) -> dict[str, Any]:
    """Recall and size per group, precision per form, and the false accepts (X, Y) with and without "in fours"."""
    kept = [{form: judge(poem["lines"], form).keeps for form in RHYMED} for poem in poems]
    pairs = list(zip(poems, kept, strict=True))
    recall, precision, false, strict = {}, {}, {}, {}
    for group, (form, belongs) in GROUPS.items():
        hits = [keeps[form] for poem, keeps in pairs if poem["form"] == form and belongs(poem)]
        recall[group] = (share(hits), len(hits))
    for form in RHYMED:
        precision[form] = tuple(
            share([poem["form"] == form for poem, keeps in pairs if keeps[form] and (fours or not in_fours(poem))])
            for fours in (False, True)
        )
        for other in RHYMED:
            taken = [(keeps[other], in_fours(poem)) for poem, keeps in pairs if poem["form"] == form]
            strict[form, other] = share([keep for keep, _ in taken])
            false[form, other] = share([keep for keep, fours in taken if not fours])
    return {"recall": recall, "precision": precision, "false": false, "false_with_fours": strict}


def share(hits: list[bool]) -> float:
    """The share of true values; 0 for none."""
    return sum(hits) / len(hits) if hits else 0.0


def main(path: str) -> None:
    """Print the tables."""
    found = measure(read(path))
    print(f"{'recall of':34} {'poems':>6} {'recall':>7}")
    for group, (recall, size) in found["recall"].items():
        print(f"{group:34} {size:6} {recall:7.3f}")
    print("\nprecision, without couplets in fours, and with them")
    for form, (without, fours) in found["precision"].items():
        print(f"{form:34} {without:6.3f} {fours:7.3f}")
    for name, title in (("false", "false accepts, without couplets in fours"), ("false_with_fours", "with them")):
        print(f"\n{title}: share of row's poems kept as column's form (diagonal: recall)")
        print(f"{'':10}" + "".join(f"{form:>10}" for form in RHYMED))
        for form in RHYMED:
            print(f"{form:10}" + "".join(f"{found[name][form, other]:10.3f}" for other in RHYMED))


if __name__ == "__main__":
    main(sys.argv[1])
