"""results/ -> the README's tables and pictures. Reads files only; the same records give the same bytes.

A table stands in README.md between `<!-- iris:NAME -->` and `<!-- /iris:NAME -->`, NAME being one of TABLES (a marker
that is not there is passed over); a picture lies in results/. Only finished, full records enter (of a measurement of
speed that was cut off, the rows that it had finished); what is left out is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import compare, pictures, record, sizes, tables
from .errors import InputError, RunError
from .record import Record
from .tables import SEED, TASKS, Scored, quants, short

TABLES = tables.TABLES | {"speed": sizes.speed_table}


def report(results: Path = Path("results"), readme: Path = Path("README.md"), check: bool = False) -> None:
    """Write the README's tables and the pictures of `results`; with `check` write nothing, and RunError names what is
    out of date. InputError: no README, a marker without its end, a damaged record, records that cannot be compared."""
    try:
        before = readme.read_text(encoding="utf-8")
    except OSError:
        raise InputError(f"there is no {readme}; run this where it is, with the tables' markers in it") from None
    records = load(results)
    groups = evaluations(records)
    stale = []
    after = before
    for name, table in TABLES.items():
        written = _fill(after, name, lambda table=table: table(groups, list(records.values()), results))  # type: ignore[misc]
        if written != after:
            stale.append(f"the table iris:{name} of {readme}")
        after = written
    for name, shown in picture_data(groups, list(records.values()), results).items():
        if not pictures.is_current(results / f"{name}.png", name, shown):
            stale.append(str(results / f"{name}.png"))
            if not check:
                pictures.write(results / f"{name}.png", name, shown)
    if check and stale:
        verb = "is" if len(stale) == 1 else "are"
        raise RunError(f"{', '.join(stale)} {verb} out of date: run `iris report` and commit what it writes")
    if after != before:
        record.write_atomic(readme, after.encode())
    print("everything is up to date" if not stale else f"wrote {', '.join(stale)}")


def load(results: Path) -> dict[Path, Record]:
    """The finished, full records of a folder by path, in the order of their names; tells what it leaves out."""
    found = {}
    for path in sorted(results.glob("*.json"), key=lambda path: path.stem):
        if path.name == SEED:
            continue
        one = record.read(path)
        cut_off = one.kind == "speed" and one.status == "stopped"  # each of its rows is finished by itself
        if (one.status == "finished" or cut_off) and not one.settings.get("limit"):
            found[path] = one
        else:
            limit = one.settings.get("limit")
            print(f"left out {path}: {f'limited to {limit} items' if limit else 'the run ' + one.status}")
    return found


def evaluations(records: dict[Path, Record]) -> list[list[Scored]]:
    """Evaluations that can be compared (same model, settings, versions), group by group, the base first."""
    trained = {(one.adapter or {}).get("digest"): one for one in records.values() if one.kind == "training"}
    keyed: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path, one in records.items():
        if one.kind == "evaluation":
            versions = [one.environment["packages"].get(name) for name in compare.PACKAGES]
            keyed[one.model["id"], record.digest_of([one.model, one.settings, versions])].append(path)
    groups = []
    for _, paths in sorted(keyed.items()):
        bases = sorted((path for path in paths if not records[path].adapter), key=lambda p: -len(records[p].tasks))
        group = [Scored(records[bases[0]], None, None)] if bases else []
        for path in paths:
            if path not in bases[:1]:
                compared = compare.compare([bases[0], path]) if bases else None
                group.append(Scored(records[path], compared, trained.get((records[path].adapter or {}).get("digest"))))
        groups.append(group)
    return groups


def picture_data(groups: list[list[Scored]], records: list[Record], results: Path) -> dict[str, list[dict[str, Any]]]:
    """What the pictures show, in JSON types: one entry a panel (scores), a run (cost) or a training (loss)."""
    scores, cost = [], []
    for group in groups:
        model = short(group[0].record.model["id"])
        panels: dict[str, dict[str, Any]] = {}
        for one in (one for one in group if one.comparison):
            assert one.comparison
            for row in one.comparison.rows:
                arrow = "higher" if row.higher_is_better else "lower"
                label = f"{row.metric} ({arrow} is better), n = {row.n:,}"
                told = {"model": model, "task": TASKS[row.task], "label": label, "base": row.base}
                panel = panels.setdefault(row.task, told | {"runs": []})
                span = {
                    "low": row.base + row.low,
                    "high": row.base + row.high,
                    "clear": row.verdict == "clear of noise",
                }
                panel["runs"].append({"name": one.record.name, "value": row.tuned} | span)
            if one.training:
                got, method = one.training.measures, (one.training.recipe or {})["method"]
                price = {"minutes": got["wall_seconds"] / 60, "memory_gb": got["peak_memory_gb"]}
                for mean in one.comparison.means:
                    span = {"value": mean.difference, "low": mean.low, "high": mean.high}
                    cost.append({"model": model, "name": one.record.name, "method": method} | price | span)
        scores += [panels[task] for task in TASKS if task in panels]
    losses = [
        {"name": one.name, "data": short((one.data or {})["id"]), "losses": one.measures["losses"]}
        for one in records
        if one.kind == "training"
    ]
    found, default = quants(results)
    files = [
        {"quant": quant, "mb": one.measures["bytes"] / 1e6, "speed": one.measures["generation_tokens_per_s"]}
        | {"bits": one.tasks["bits_per_byte"]["value"], "stderr": one.tasks["bits_per_byte"]["stderr"]}
        | {"default": quant == default["default"]}
        for quant, one in found.items()
    ]
    return {"scores": scores, "cost": cost, "loss": losses, "quants": files, "speed": sizes.picture(records)}


def _fill(text: str, name: str, table: Callable[[], str]) -> str:
    """`text` with the table between its markers; unchanged where it has none."""
    begin, end = f"<!-- iris:{name} -->", f"<!-- /iris:{name} -->"
    before, marker, rest = text.partition(begin)
    if not marker:
        return text
    if end not in rest:
        raise InputError(f"the README's marker {begin} has no {end} after it; add that line")
    content = table() or "No record of this kind yet."
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
