"""The tables of README.md and docs/, as Markdown, from records. `iris report` puts them between their markers."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import record
from ..compare import Scored, markdown, settings_in_words, short, with_error, with_interval
from ..evaluate.tasks import FIXED, TASKS
from ..record import Record

SCORES_NOTE = (
    "± is one standard error; under a score its difference from the base, the 95% interval (paired bootstrap over "
    "items) and whether that is clear of noise (p below 0.05, corrected by Holm over the row's tasks)."
)
WATCHED = 20.0  # tokens/s: a quatrain of 40 tokens is there in two seconds
READ = 5.0  # tokens/s of silent reading: 238 English words a minute (Brysbaert 2019), 1.3 tokens a word
# A table is its head, and the format of a row.
TRAINING = (
    "run | method | data | r | learning rate | steps | tokens | seconds | tokens/s | memory | device | loss",
    "{one.name} | {one.recipe[method]} | {data}, {one.data[rows]:,} rows | {one.recipe[r]} | "
    "{one.recipe[learning_rate]:g} | {got[steps]:,} | {got[tokens]:,} | {got[wall_seconds]:.0f} | "
    "{got[tokens_per_s]:,.0f} | {got[peak_memory_gb]:.1f} GB | {one.settings[device]} | "
    "{got[loss_first]:.3f} → {got[loss_last]:.3f}",
)
QUANTS = (
    "GGUF | MB | KL to 16 bits (nats) | same first choice | bits a byte | "
    "form score<br>(haiku, limerick, couplet, quatrain) | ends by itself | reads tokens/s | writes tokens/s | memory",
    "{quant} | {megabytes:.0f} | {tasks[kl_divergence][value]:.4f} | {tasks[top1_agreement][value]:.3f} | "
    "{tasks[bits_per_byte][value]:.4f} ± {tasks[bits_per_byte][stderr]:.4f} | "
    "{poems[value]:.3f} ± {poems[stderr]:.3f} | {tasks[ends_by_itself][value]:.1%} | "
    "{got[prompt_tokens_per_s]:.0f} | {got[generation_tokens_per_s]:.0f} | {got[peak_memory_gb]:.2f} GB",
)
TRAINS = (
    "size | method | tokens/s | a step | GPU memory",
    "{shape} | {method} | {steady_tokens_per_s:,.0f} | {step_seconds:.2f} s | {peak_memory_gb:.1f} GB",
)
WRITES = (
    "size | GGUF | file | loads in | reads tokens/s | writes tokens/s | memory | of the bandwidth",
    "{shape} | {quant} | {file_gb:.2f} GB | {load_seconds:.1f} s | {prompt_tokens_per_s:.1f} | "
    "{generation_tokens_per_s:.1f} | {peak_memory_gb:.1f} GB | {bandwidth_ratio:.0%}",
)


@dataclass(frozen=True)
class Lab:
    """What tables and pictures are made of: the records of the folder `results`, and of these the evaluations, in
    groups that can be compared."""

    results: Path
    records: dict[Path, Record]
    groups: list[list[Scored]]


def results(lab: Lab, words: list[str]) -> str:
    """Every evaluation: its settings, scores, differences and verdicts; what seeds say; what each training cost."""
    parts = []
    for group in lab.groups:
        model, environment = group[0].record.model, group[0].record.environment
        parts.append(
            f"**{short(model['id'])}** (weights: {model.get('revision') or model.get('digest')}): "
            f"{settings_in_words(group[0].record.settings, environment.get('device'))}, lm-eval "
            f"{environment['packages'].get('lm_eval')}. {SCORES_NOTE}"
        )
        parts += [_scores(group, brief=False), *_seeds(group), _poems([one.record for one in group])]
        trained = [one.training for one in group if one.training]
        told = [{"one": one, "got": one.measures, "data": short((one.data or {})["id"])} for one in trained]
        parts.append(_table(TRAINING, told))
    return "\n\n".join(part for part in parts if part)


def scores(lab: Lab, words: list[str]) -> str:
    """The runs called `words` in few words: scores of a base, differences and verdicts of what was tuned."""
    runs = {one.record.name: one for group in lab.groups for one in group}
    return _scores([runs[name] for name in words if name in runs], brief=True)


def _scores(runs: list[Scored], brief: bool) -> str:
    entries = {task: one.record.tasks[task] for task in TASKS for one in runs if task in one.record.tasks}
    head = ["run"]
    for task, entry in entries.items():
        about = f"{entry['metric']} {'↑' if entry['higher_is_better'] else '↓'}, n = {entry['n']:,}"
        forms = f"<br>kept, %: {', '.join(FIXED)}" if TASKS[task].by_form else ""
        head.append(f"{TASKS[task].title}<br>{about}{forms}")
    rows = []
    for one in runs:
        how = "" if one.record.adapter else "as it came"
        if one.training:
            how = f"{(one.training.recipe or {})['method']}, {short((one.training.data or {})['id'])}"
        line = [f"{one.record.name}<br>{how}"]
        compared = {row.task: row for row in one.comparison.rows if row.verdict} if one.comparison else {}
        for task in entries:
            mine, row = one.record.tasks.get(task), compared.get(task)
            if mine is None:
                line.append("not measured")
                continue
            cell = [] if brief and row else [with_error(mine["value"], mine["stderr"])]
            measures = {mine["metric"]: mine} | mine["others"]
            for metric in ("keeps", "strict") if TASKS[task].by_form else ():  # free verse stands apart
                kept = [measures.get(f"{form} {metric}") for form in FIXED]
                if any(kept):
                    shares = [f"{100 * each['value']:.1f}" if each else "–" for each in kept]
                    cell.append(f"{metric} {', '.join(shares)}")
            if row:
                cell.append(f"{row.difference:+.4f}" if brief else with_interval(row))
                cell.append(row.verdict if row.verdict == "within noise" else f"**{row.verdict}**")
            line.append("<br>".join(cell))
        if not brief:
            line.append(", ".join(map(with_interval, one.comparison.means)) if one.comparison else "")
        rows.append(line)
    return markdown(head if brief else [*head, "mean difference<br>of the accuracies"], rows)


def _seeds(group: list[Scored]) -> list[str]:
    """What several seeds of one recipe on the same data say together."""
    alike: dict[str, dict[int, Scored]] = defaultdict(dict)
    for one in group:
        if one.comparison and one.training and one.training.recipe:
            data = (one.training.data or {}).get("fingerprint")
            recipe = record.digest_of([one.training.recipe | {"seed": None}, data])
            alike[recipe][one.training.recipe["seed"]] = one
    sentences = []
    for seeds in (list(each.values()) for each in alike.values() if len(each) > 1):
        differences: dict[str, list[float]] = defaultdict(list)
        for row in (row for one in seeds if one.comparison for row in one.comparison.rows if row.verdict):
            differences[TASKS[row.task].title].append(row.difference)
        measured = {task: each for task, each in differences.items() if len(each) == len(seeds)}
        spans = [f"{t} {sum(d) / len(d):+.4f} ({min(d):+.4f} to {max(d):+.4f})" for t, d in measured.items()]
        named = ", ".join(one.record.name for one in seeds)
        sentences.append(f"{len(seeds)} seeds of one recipe ({named}), mean difference and range: {'; '.join(spans)}.")
    return sentences


def _poems(records: list[Record]) -> str:
    """poetry_form's other measures: of all six forms, and of free verse, which any two lines are, alone."""
    runs = {one.name: one.tasks["poetry_form"]["others"] for one in records if "poetry_form" in one.tasks}
    others = {name: entry for found in runs.values() for name, entry in found.items()}
    names = [name for name in others if name != "strict" and name.split()[0] not in FIXED]
    rows = []
    for run, found in runs.items():
        entries = [found.get(name) for name in names]
        rows.append([run, *(with_error(each["value"], each["stderr"]) if each else "" for each in entries)])
    return markdown(["run", *(f"{name} {'↑' if others[name]['higher_is_better'] else '↓'}" for name in names)], rows)


def quants(lab: Lab, words: list[str]) -> str:
    """What each quantization of an export costs and saves (results/quants); with `words` these alone."""
    paths = [path for path in (lab.results / "quants").glob("*.json") if path.stem != "default"]
    found = sorted(((path.stem, record.read(path)) for path in paths), key=lambda each: -each[1].measures["bytes"])
    rows = [
        {"quant": quant, "megabytes": one.measures["bytes"] / 1e6, "got": one.measures}
        | {"tasks": one.tasks, "poems": one.tasks["poetry_form"]}
        for quant, one in found
        if not words or quant in words
    ]
    if not rows:
        return ""
    rule = json.loads((lab.results / "quants" / "default.json").read_text(encoding="utf-8"))
    told = f"**{rule['default']}** is what the rule picks: {rule['rule']}"
    return f"{_table(QUANTS, rows)}\n\n{told} Measured on {rows[0]['got']['threads']} cores."


def speed(lab: Lab, words: list[str]) -> str:
    """Training and writing by size, random weights in the Llama-3 shapes, and the sentence that they support."""
    training, writing = by_size(lab.records.values())
    told = []
    for least, what in ((WATCHED, "is watched while it writes"), (READ, "writes as fast as people read")):
        fast = [row["shape"] for row in writing if row["generation_tokens_per_s"] >= least]
        told.append(f"{f'the {fast[-1]}' if fast else 'no size'} where the page {what} ({least:.0f} tokens/s)")
    largest = f"The largest that these cores carry: {'; '.join(told)}." if writing else ""
    return "\n\n".join(part for part in (_table(TRAINS, training), _table(WRITES, writing), largest) if part)


def by_size(records: Iterable[Record]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of Iris' training at a GPU's full strength, and those of the room's engine, the smallest size first;
    measured again, the latest counts."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    speeds = [one for one in records if one.kind == "speed" and not one.settings.get("as_t4")]
    for one in sorted(speeds, key=lambda one: one.started):
        for row in one.measures.get("rows", []):
            if "shape" in row and row.get("who") in ("iris", "xllamacpp"):
                key = row["who"], row["shape"], row.get("method"), row.get("quant")
                found[key] = row | {"shape": row["shape"].upper()}
    ordered = sorted(found.values(), key=lambda row: float(row["shape"].removesuffix("B")))
    return [row for row in ordered if row["who"] == "iris"], [row for row in ordered if row["who"] != "iris"]


def rows(lab: Lab, words: list[str]) -> str:
    """The rows of one record as they were measured: its name, then the keys of the columns (tasks.hellaswag.value)."""

    def cell(found: Any, column: str) -> str:
        for key in column.split("."):
            found = found.get(key, "") if isinstance(found, dict) else ""
        if not isinstance(found, int | float):
            return str(found)
        return f"{found:,.0f}" if abs(found) >= 100 else f"{found:.4g}"

    name, *columns = words
    measured = record.read(lab.results / f"{name}.json").measures["rows"]
    head = [column.removeprefix("tasks.").replace(".", " ").replace("_", " ") for column in columns]
    return markdown(head, [[cell(row, column) for column in columns] for row in measured])


def _table(columns: tuple[str, str], rows: list[dict[str, Any]]) -> str:
    """A table of a head and the format of a row; "" where there are no rows."""
    head, line = (each.split(" | ") for each in columns)
    return markdown(head, [[cell.format(**row) for cell in line] for row in rows])


TABLES = {"results": results, "scores": scores, "quants": quants, "speed": speed, "rows": rows}
