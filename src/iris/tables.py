"""The README's tables, as Markdown, from records. `iris report` puts them between their markers."""

from __future__ import annotations

import html
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import compare, record
from .record import Record

SEED = "seed.json"  # the seed lab's reported figures; no record
EXPECTED = ("meta-llama/Llama-3.2-1B-Instruct",)  # models that the table names whether they were measured or not
TASKS = {
    "hellaswag": "HellaSwag",
    "arc_challenge": "ARC-Challenge",
    "mmlu_stem": "MMLU-STEM",
    "truthfulqa_mc2": "TruthfulQA",
    "poetry_verses": "held-out verses",
    "poetry_form": "poems in form",
}
NOT_MEASURED = "not measured here"
SCORES_NOTE = (
    "± is one standard error; under a score its difference from the base, the 95% interval (paired bootstrap over "
    "items) and whether that is clear of noise (p below 0.05, corrected by Holm over the row's tasks)."
)
SEED_NOTE = (
    "The scores are the seed lab's, as reported; it gave no errors. Those here are what its sample sizes imply: "
    "√(p(1-p)/n), and 0.014 for TruthfulQA, whose items score between 0 and 1. The runs are taken as independent of "
    "the base (s.e. of a difference: √(a² + b²)): a paired, sharper test needs scores item by item, which were not "
    "published. Nothing is corrected for the number of comparisons."
)


@dataclass(frozen=True)
class Scored:
    """An evaluation, its comparison with the base of its group (None: it is the base, or there is none), and the
    training that its adapter came from (where that record is here too)."""

    record: Record
    comparison: compare.Comparison | None
    training: Record | None


def results_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """Scores with standard errors, differences from the base and verdicts; every setting that moves a score is said."""
    parts = []
    for group in groups:
        parts += group_tables(group)
    measured = {group[0].record.model["id"] for group in groups}
    absent = [[short(model), *[NOT_MEASURED] * 4] for model in EXPECTED if model not in measured]
    if absent:
        parts.append(markdown(["run", *list(TASKS.values())[:4]], absent))
    return "\n\n".join(parts)


def group_tables(group: list[Scored]) -> list[str]:
    """One group of evaluations that can be compared: its settings, scores, findings and poetry."""
    tasks = [task for task in TASKS if any(task in one.record.tasks for one in group)]
    return [_headline(group), _scores(group, tasks), *_findings(group), *_poetry(group)]


def _headline(group: list[Scored]) -> str:
    one = group[0].record
    said, packages = one.settings, one.environment["packages"]
    shots = "zero-shot" if not said.get("num_fewshot") else f"{said['num_fewshot']}-shot"
    template = {"poetry tasks only": "no chat template (in the poetry tasks the model's own)", None: "no chat template"}
    template_said = template.get(said.get("chat_template"), f"chat template: {said.get('chat_template')}")
    device = one.environment.get("device") or said.get("device")
    weights = one.model.get("revision") or one.model.get("digest")
    return (
        f"**{short(one.model['id'])}** (weights: {weights}): {shots}, {template_said}, {said.get('precision')} on "
        f"{device}, batches of {said.get('batch_size')}, lm-eval {packages.get('lm_eval')}. {SCORES_NOTE}"
    )


def _scores(group: list[Scored], tasks: list[str]) -> str:
    head = ["run"]
    for task in tasks:
        entry = next(one.record.tasks[task] for one in group if task in one.record.tasks)
        arrow = "↑" if entry["higher_is_better"] else "↓"
        head.append(f"{TASKS[task]}<br>{entry['metric']} {arrow}, n = {entry['n']:,}")
    rows = []
    for one in group:
        found = {row.task: row for row in one.comparison.rows} if one.comparison else {}
        line = [_run_name(one)]
        for task in tasks:
            cell = _score(one.record, task)
            if task in found:
                row = found[task]
                clear = f"**{'better' if _is_better(row) else 'worse'}, clear of noise**"
                verdict = clear if row.verdict == "clear of noise" else row.verdict
                cell += f"<br>{_difference(row.difference, row.low, row.high)}<br>{verdict}"
            line.append(cell)
        means = one.comparison.means if one.comparison else ()
        line.append(_difference(means[0].difference, means[0].low, means[0].high) if means else "")
        rows.append(line)
    return markdown([*head, "mean difference<br>of the accuracies"], rows)


def _findings(group: list[Scored]) -> list[str]:
    """What is clear of noise, and what several seeds of one recipe say, in sentences."""
    compared = [one for one in group if one.comparison]
    if not compared:
        return ["Nothing was compared: no tuned model was measured beside this base under the same settings."]
    told: dict[bool, list[str]] = {True: [], False: []}
    for one in compared:
        clear = [row for row in (one.comparison.rows if one.comparison else ()) if row.verdict == "clear of noise"]
        for good, found in told.items():
            names = [TASKS[row.task] for row in clear if _is_better(row) == good]
            found += [f"{one.record.name} ({', '.join(names)})"] if names else []
    better = f"Better, clear of noise: {', '.join(told[True])}." if told[True] else "No run is better, clear of noise."
    worse = f" Worse, clear of noise: {', '.join(told[False])}." if told[False] else ""
    parts = [better + worse]
    alike: dict[str, list[Scored]] = defaultdict(list)
    for one in compared:
        if one.training and one.training.recipe:
            alike[record.digest_of(one.training.recipe | {"seed": None})].append(one)
    for runs in (runs for runs in alike.values() if len(runs) > 1):
        by_task: dict[str, list[float]] = defaultdict(list)
        for row in (row for one in runs if one.comparison for row in one.comparison.rows):
            by_task[row.task].append(row.difference)
        spans = [f"{TASKS[t]} {sum(d) / len(d):+.4f} ({min(d):+.4f} to {max(d):+.4f})" for t, d in by_task.items()]
        runs_named = ", ".join(one.record.name for one in runs)
        parts.append(f"{len(runs)} seeds of one recipe ({runs_named}), mean difference and range: {'; '.join(spans)}.")
    return parts


def _is_better(row: compare.Row) -> bool:
    return (row.difference > 0) == row.higher_is_better


def _poetry(group: list[Scored]) -> list[str]:
    """The poetry task's other measures, one row a run."""
    runs = [one for one in group if one.record.tasks.get("poetry_form", {}).get("others")]
    if not runs:
        return []
    others = runs[0].record.tasks["poetry_form"]["others"]
    head = ["poems in form", *(f"{name} {'↑' if entry['higher_is_better'] else '↓'}" for name, entry in others.items())]
    rows = []
    for one in runs:
        mine = one.record.tasks["poetry_form"]["others"]
        rows.append(
            [one.record.name, *(_value(mine[n]["value"], mine[n]["stderr"]) if n in mine else "" for n in others)]
        )
    return [markdown(head, rows)]


def methods_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """The price of every training beside what it brought."""
    means = {
        record.digest_of(one.training.adapter): _difference(mean.difference, mean.low, mean.high)
        for group in groups
        for one in group
        if one.training and one.comparison
        for mean in one.comparison.means
    }
    head = ["run", "method", "data", "r", "learning rate", "steps", "tokens", "time", "tokens/s", "peak memory"]
    rows = []
    for one in (one for one in records if one.kind == "training"):
        recipe, data, got = one.recipe or {}, one.data or {}, one.measures
        row = [one.name, recipe["method"], f"{short(data['id'])}, {data['rows']:,} rows", str(recipe["r"])]
        row += [f"{recipe['learning_rate']:g}", f"{got['steps']:,}", f"{got['tokens']:,}", _time(got["wall_seconds"])]
        row += [f"{got['tokens_per_s']:,.0f}", f"{got['peak_memory_gb']:.1f} GB", one.settings["device"]]
        loss = f"{got['loss_first']:.3f} → {got['loss_last']:.3f}"
        rows.append([*row, loss, means.get(record.digest_of(one.adapter), NOT_MEASURED)])
    return markdown([*head, "device", "loss", "mean difference<br>of the accuracies"], rows)


def seed_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """The seed lab's figures as reported, its sums done again, with the errors that its sample sizes imply."""
    path = results / SEED
    if not path.exists():
        return f"No data: {path} is missing."
    seed = json.loads(path.read_text(encoding="utf-8"))
    tasks, base, slips = seed["tasks"], seed["base"], seed["reported_mean_percent"]

    def stderr(task: str, value: float) -> float:
        return tasks[task].get("stderr") or math.sqrt(value * (1 - value) / tasks[task]["n"])

    rows = [["base", *(_value(base[task], stderr(task, base[task])) for task in tasks), "", ""]]
    clear = []
    for name, scores in seed["runs"].items():  # (1e-9: a half rounds up, as by hand)
        line, differences, variances = [name], [], []
        for task, value in scores.items():
            differences.append(value - base[task])
            variances.append(stderr(task, value) ** 2 + stderr(task, base[task]) ** 2)
            far = differences[-1] / math.sqrt(variances[-1])
            line.append(f"{_value(value, stderr(task, value))}<br>{differences[-1]:+.4f} ({far:+.1f} s.e.)")
            if abs(far) > 1.96:
                clear.append(f"{TASKS[task]} of {name}")
        mean, error = sum(differences) / len(tasks) + 1e-9, math.sqrt(sum(variances)) / len(tasks)
        slip = f"{slips[name]:+.2f}%, wrong: it is {100 * mean:+.2f}%" if name in slips else "not given"
        rows.append([name, *line[1:], f"{mean:+.4f} ± {error:.4f}", slip])
    ours = [one for group in groups for one in group if one.record.model["id"] == seed["model"]]
    for one in ours:
        rows.append([f"{one.record.name} (ours)", *(_score(one.record, task) for task in tasks), "", ""])
    if not ours:
        rows.append([f"{short(seed['model'])} (ours)", *[NOT_MEASURED] * len(tasks), "", ""])
    head = [f"{short(seed['model'])}, as reported, not ours", *(f"{TASKS[t]}<br>n = {tasks[t]['n']:,}" for t in tasks)]
    beyond = f"Beyond 1.96 s.e., and so clear of noise: {', '.join(clear) or 'nothing'}."
    return "\n\n".join(
        [
            markdown([*head, "mean difference,<br>recomputed", "the lab's own sum"], rows),
            f"{SEED_NOTE} {beyond}",
        ]
    )


def poems_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """The same requests to a base and to its tuned model, side by side, unselected."""
    parts = []
    for one in (one for one in records if "poems" in one.measures):
        minutes = one.measures["training_seconds"] / 60
        head = ["asked for", f"{short(one.model['id'])} as it came", f"after {minutes:.0f} minutes of training"]
        rows = [
            [f"{each['form']}: {each['theme']}", *(_verse(each[who]) for who in ("base", "tuned"))]
            for each in one.measures["poems"]
        ]
        parts.append(markdown(head, rows))
    return "\n\n".join(parts)


def _verse(text: str) -> str:
    return "<br>".join(html.escape(line.strip(), quote=False) for line in text.splitlines())


def export_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """The files of every export and their sizes in MB (10^6 bytes)."""
    rows = []
    for one in (one for one in records if one.kind == "export" and "wall_seconds" in one.measures):
        sizes = {key[6:]: value for key, value in one.measures.items() if key.startswith("bytes_")}
        method = (one.adapter or {}).get("method", "")
        files = ", ".join(f"{quant.upper()} {size / 1e6:,.0f} MB" for quant, size in sizes.items())
        rows.append([one.name, short(one.model["id"]), method, files, _time(one.measures["wall_seconds"])])
    return markdown(["export", "base", "method", "GGUF files", "time"], rows)


def quants_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """What each quantization of an export costs and saves (results/quants, by `python -m iris.quality`)."""
    found, default = quants(results)
    if not found:
        return ""
    head = ["GGUF", "MB", "KL to 16 bits (nats)", "same first choice", "bits a byte", "form score", "ends by itself"]
    rows = []
    for quant, one in found.items():
        tasks, got = one.tasks, one.measures
        row = [quant, f"{got['bytes'] / 1e6:.0f}", f"{tasks['kl_divergence']['value']:.4f}"]
        row += [f"{tasks['top1_agreement']['value']:.3f}"]
        row += [_value(tasks[t]["value"], tasks[t]["stderr"]) for t in ("bits_per_byte", "poetry_form")]
        row += [f"{tasks['ends_by_itself']['value']:.1%} of {tasks['ends_by_itself']['n']}"]
        rows.append([*row, *(_plain(got[key]) for key in ("prompt_tokens_per_s", "generation_tokens_per_s"))])
        rows[-1].append(f"{got['peak_memory_gb']:.2f}")
    threads = next(iter(found.values())).measures["threads"]
    told = f"**{default['default']}** is what the rule picks: {default['rule']} Measured on {threads} cores."
    return markdown([*head, "prompt tokens/s", "generation tokens/s", "memory GB"], rows) + "\n\n" + told


def quants(results: Path) -> tuple[dict[str, Record], dict[str, str]]:
    """The records of results/quants by quantization, the largest file first, and {"default", "rule"}: which one the
    rule picks; both empty where nothing was measured."""
    files = [path for path in sorted((results / "quants").glob("*.json")) if path.stem != "default"]
    found = {path.stem: record.read(path) for path in files}
    if not found:
        return {}, {}
    by_size = sorted(found.items(), key=lambda item: -item[1].measures["bytes"])
    return dict(by_size), json.loads((results / "quants" / "default.json").read_text(encoding="utf-8"))


def evaluation_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """The four benchmarks timed beside plain lm_eval (bench/evaluation.py): times, and how far the scores differ."""
    lines, told = [], []
    tasks = list(TASKS)[:4]
    for path in sorted((results / "speed").glob("evaluate-*.json")):
        timed = record.read(path)
        ours, *others = timed.measures["rows"]
        model = short(timed.model["id"])
        for row in (ours, *others):
            lines.append([model, row["who"], f"{row['seconds']:.0f} s", *(_timed(row["tasks"].get(t)) for t in tasks)])
        starting = ours["seconds"] - sum(entry["seconds"] for entry in ours["tasks"].values())
        for plain in others:
            apart = max(abs(entry["value"] - plain["tasks"][task]["value"]) for task, entry in ours["tasks"].items())
            told.append(
                f"{model}, {timed.settings['precision']}, {timed.settings['device']}: "
                f"{plain['seconds'] / ours['seconds']:.1f} times faster, {starting:.0f} s of it starting; "
                f"the scores differ by {apart:.4f} at most."
            )
    table = markdown(["model", "who", "time", *(TASKS[task] for task in tasks)], lines)
    return table and "\n\n".join([table, *told])


def _timed(entry: dict[str, Any] | None) -> str:
    """A score, with the seconds that it took where they are known; "" where there is none."""
    if entry is None:
        return ""
    return _value(entry["value"], None) + (f" ({entry['seconds']:.0f} s)" if "seconds" in entry else "")


def room_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """What the room was asked for and did (bench/room.py), a column a model."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    models = {}
    for one in (one for one in records if any("asked" in row for row in one.measures.get("rows", []))):
        models[one.model["id"]] = one.model["id"].removesuffix(".gguf")
        for row in one.measures["rows"]:
            asked = f"<br>({row['asked']} asked)" if row["asked"] else ""
            found[row["what"]][one.model["id"]] = row["measured"] + asked
    lines = [[what, *(cells.get(model, NOT_MEASURED) for model in models)] for what, cells in found.items()]
    return markdown(["", *models.values()], lines)


TABLES = {
    "quants": quants_table,
    "poems": poems_table,
    "results": results_table,
    "methods": methods_table,
    "seed": seed_table,
    "export": export_table,
    "evaluation": evaluation_table,
    "room": room_table,
}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, or "" where it has no rows."""
    if not rows:
        return ""
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _run_name(one: Scored) -> str:
    if one.training:
        return f"{one.record.name}<br>{(one.training.recipe or {})['method']}, {short((one.training.data or {})['id'])}"
    return one.record.name + ("" if one.record.adapter else "<br>as it came")


def short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _score(one: Record, task: str) -> str:
    return _value(one.tasks[task]["value"], one.tasks[task]["stderr"]) if task in one.tasks else NOT_MEASURED


def _value(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def _difference(value: float, low: float, high: float) -> str:
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _plain(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, int | float)
        else str(value)
    )
