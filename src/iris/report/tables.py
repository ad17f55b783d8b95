"""The tables of README.md and docs/, as Markdown, from records. `iris report` puts them between their markers."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import record
from ..compare import Scored, markdown, settings_in_words, short, with_error, with_interval
from ..evaluate.tasks import FIXED, TASKS

SCORES_NOTE = (
    "± is one standard error; under a score its difference from the base, the 95% interval (paired bootstrap over "
    "items) and whether that is clear of noise (p below 0.05, corrected by Holm over the row's tasks)."
)


@dataclass(frozen=True)
class Lab:
    """What tables and the picture are made of: the folder `results` of records, and of these the evaluations, in
    groups that can be compared."""

    results: Path
    groups: list[list[Scored]]


def results(lab: Lab, words: list[str]) -> str:
    """Every evaluation: its settings, scores, differences and verdicts, and what seeds say together."""
    parts = []
    for group in lab.groups:
        model, environment = group[0].record.model, group[0].record.environment
        parts.append(
            f"**{short(model['id'])}** (weights: {model.get('revision') or model.get('digest')}): "
            f"{settings_in_words(group[0].record.settings, environment.get('device'))}, lm-eval "
            f"{environment['packages'].get('lm_eval')}. {SCORES_NOTE}"
        )
        parts += [_scores(group, brief=False), *_seeds(group)]
    return "\n\n".join(parts)


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
        for task in entries:
            mine, row = one.record.tasks.get(task), one.rows.get(task)
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
        if one.rows and one.training and one.training.recipe:
            data = (one.training.data or {}).get("fingerprint")
            recipe = record.digest_of([one.training.recipe | {"seed": None}, data])
            alike[recipe][one.training.recipe["seed"]] = one
    sentences = []
    for seeds in (list(each.values()) for each in alike.values() if len(each) > 1):
        spans = []
        for task in seeds[0].rows:
            if all(task in one.rows for one in seeds):
                found = [one.rows[task].difference for one in seeds]
                mean = f"{sum(found) / len(found):+.4f} ({min(found):+.4f} to {max(found):+.4f})"
                spans.append(f"{TASKS[task].title} {mean}")
        named = ", ".join(one.record.name for one in seeds)
        sentences.append(f"{len(seeds)} seeds of one recipe ({named}), mean difference and range: {'; '.join(spans)}.")
    return sentences


def rows(lab: Lab, words: list[str]) -> str:
    """Measurements as they are: the names of records, with commas between, then the keys of the columns
    (tasks.hellaswag.value). A record that has `rows` gives these, another itself; one without the first column is
    passed over."""
    names, *columns = words
    read = [record.read(lab.results / f"{name}.json") for name in names.split(",")]
    measured = [row for one in read for row in one.measures.get("rows", [vars(one)])]
    head = [re.sub(r"^(tasks|measures|settings|recipe)\.|\w+\.others\.|\.value$", "", column) for column in columns]
    lines = [[cell(row, column) for column in columns] for row in measured]
    return markdown([re.sub("[._]", " ", column) for column in head], [line for line in lines if line[0]])


def cell(found: Any, column: str) -> str:
    for key in column.split("."):
        found = found.get(key, "") if isinstance(found, dict) else ""
    if not isinstance(found, int | float):
        return str(found)
    return f"{found:,.0f}" if abs(found) >= 100 else f"{found:.4g}"


TABLES = {"results": results, "scores": scores, "rows": rows}
