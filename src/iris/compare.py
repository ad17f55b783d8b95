"""Two or more evaluations of the same items: which differences are clear of noise?

Run as: iris compare results/base.json results/tuned.json ...

The first record is the base. Every statistic is paired, item by item:
- the interval is the percentile bootstrap over items (Efron and Tibshirani 1993), weights kept with their items;
- p is exact McNemar where items score 0 or 1 (McNemar 1947; exact as in Fagerland et al. 2013), else a sign-flip
  permutation test of the (weighted) mean difference (Good 2005);
- over the tasks of one record p is corrected by Holm (1979). A difference is called clear of noise where the corrected
  p is below 0.05. Other measures of a task are listed with uncorrected p, and are called nothing.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import InputError, record
from .record import DECISIVE, Record

ALPHA = 0.05
RESAMPLES = 10_000
Array = np.ndarray[Any, np.dtype[np.float64]]
Items = dict[str, list[Any]]  # the columns of one task: id, value, and other scores or weight


@dataclass(frozen=True)
class Row:
    """One measure of one task in two records. `difference` is tuned less base, `low` and `high` its 95% interval;
    `p_holm` and `verdict` ("within noise"; "better" or "worse, clear of noise") are set for a task's main metric."""

    record: str
    task: str
    metric: str
    higher_is_better: bool
    base: float
    base_stderr: float | None
    tuned: float
    tuned_stderr: float | None
    difference: float
    n: int
    low: float
    high: float
    p: float
    test: str
    p_holm: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Mean:
    """The mean difference over the accuracy tasks of a record, with its 95% interval."""

    record: str
    tasks: tuple[str, ...]
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`rows` stand record by record, the main metrics of its tasks first."""

    base: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    means: tuple[Mean, ...]
    notes: tuple[str, ...]

    def table(self) -> str:
        """The comparison as Markdown: a line on the settings, a table, the means and the notes."""
        head = ["record", "task", "metric", "n", "base", "tuned", "difference", "p", "p (Holm)", "verdict"]
        lines = []
        for row in self.rows:
            metric = f"{row.metric} ({'higher' if row.higher_is_better else 'lower'} is better)"
            scores = [with_error(row.base, row.base_stderr), with_error(row.tuned, row.tuned_stderr)]
            ps = ["" if p is None else f"{p:.2g}" for p in (row.p, row.p_holm)]
            lines.append([row.record, row.task, metric, str(row.n), *scores, with_interval(row), *ps, row.verdict])
        about = f"Base: {self.base}. Settings of all: {settings_in_words(self.settings)}. Differences stand with their "
        about += "95% interval; rows without a verdict are other measures, whose p is not corrected."
        means = [f"Mean difference of {m.record} over {', '.join(m.tasks)}: {with_interval(m)}" for m in self.means]
        return "\n\n".join([about, markdown(head, lines, aligned=True), *means, *self.notes])


@dataclass(frozen=True)
class Scored:
    """An evaluation, its comparison with the base of its group (None: it is the base, or there is none), of that the
    rows of main metrics by task, and the training that its adapter came from (where that record is here too)."""

    record: Record
    comparison: Comparison | None
    rows: dict[str, Row]
    training: Record | None


def evaluations(records: dict[Path, Record]) -> list[list[Scored]]:
    """Evaluations that can be compared (same model, settings, versions), group by group, the base first."""
    trained = {(one.adapter or {}).get("digest"): one for one in records.values() if one.kind == "training"}
    keyed: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path, one in records.items():
        if one.kind == "evaluation":
            versions = [one.environment["packages"].get(name) for name in DECISIVE if name != "peft"]
            model = [one.model.get(name) for name in ("id", "revision", "digest")]
            keyed[one.model["id"], record.digest_of([model, one.settings, versions])].append(path)
    groups = []
    for key in sorted(keyed):
        paths = sorted(keyed[key], key=lambda path: (records[path].adapter is not None, -len(records[path].tasks)))
        base = None if records[paths[0]].adapter else paths[0]
        group = []
        for path in paths:
            compared = compare([base, path]) if base and path != base else None
            rows = {row.task: row for row in compared.rows if row.verdict} if compared else {}
            training = trained.get((records[path].adapter or {}).get("digest"))
            group.append(Scored(records[path], compared, rows, training))
        groups.append(group)
    return groups


def compare(records: list[str | Path]) -> Comparison:
    """Compare the records at these paths with the first. InputError where they cannot be compared, and why."""
    base, base_items = _read(records[0])
    rows: list[Row] = []
    means: list[Mean] = []
    notes: list[str] = []
    for path in records[1:]:
        tuned, items = _read(path)
        _check(base, tuned, f"{records[0]} and {path}")
        if left_out := sorted(base.tasks.keys() ^ tuned.tasks.keys()):
            notes.append(f"Not in both {base.name} and {tuned.name}, so left out: {', '.join(left_out)}.")
        rng = np.random.default_rng(0)
        mine: list[Row] = []
        others: list[Row] = []
        draws: dict[str, Array] = {}
        for task in (task for task in base.tasks if task in tuned.tasks):
            pair = base_items[task], items[task]
            if pair[0]["id"] != pair[1]["id"]:
                raise InputError(f"{records[0]} and {path} hold different items of {task}; evaluate both anew")
            for column in ["value", *(name for name in pair[0] if name not in ("id", "weight", "value"))]:
                if column not in pair[1]:
                    continue
                first, second = base.tasks[task], tuned.tasks[task]
                metric = first["metric"] + (f" of {', '.join(first['parts'])}" if first.get("parts") else "")
                if column != "value":
                    first, second, metric = first["others"][column], second["others"][column], column
                scores = first["value"], first["stderr"], second["value"], second["stderr"]
                test, drawn = paired(pair, column, RESAMPLES, rng)
                gain = second["value"] - first["value"]
                row = Row(tuned.name, task, metric, first["higher_is_better"], *scores, gain, **test)
                (mine if column == "value" else others).append(row)
                if column == "value" and metric.startswith("acc"):
                    draws[task] = drawn
        for row, p in zip(mine, holm([row.p for row in mine]), strict=True):
            way = "better" if (row.difference > 0) == row.higher_is_better else "worse"
            rows.append(replace(row, p_holm=p, verdict=f"{way}, clear of noise" if p < ALPHA else "within noise"))
        rows += others
        if len(draws) > 1:
            low, high = np.quantile(np.mean(list(draws.values()), axis=0), [0.025, 0.975])
            value = float(np.mean([row.difference for row in mine if row.task in draws]))
            means.append(Mean(tuned.name, tuple(draws), value, float(low), float(high)))
    return Comparison(base.name, base.settings, tuple(rows), tuple(means), tuple(notes))


def paired(
    pair: tuple[Items, Items], column: str, resamples: int, rng: np.random.Generator
) -> tuple[dict[str, Any], Array]:
    """{"n", "low", "high", "p", "test"} of one column of scores in two evaluations of the same items, and the
    `resamples` bootstrapped differences. Items without such a score (None) do not count."""
    from scipy.stats import binomtest

    scores = np.array([each[column] for each in pair], dtype=np.float64)  # None becomes nan
    scored = np.logical_not(np.isnan(scores).any(axis=0))
    before, after = scores[:, scored]
    weight = np.asarray(pair[0].get("weight") or np.ones(len(scored)), dtype=np.float64)[scored]
    drawn = bootstrap(after - before, weight, resamples, rng)
    low, high = (float(each) for each in np.quantile(drawn, [0.025, 0.975]))
    if np.isin(scores[:, scored], (0, 1)).all() and len(set(weight)) == 1:
        gained, changed = int(np.sum(after > before)), int(np.sum(after != before))
        p, test = float(binomtest(gained, changed).pvalue) if changed else 1.0, "exact McNemar"
    else:
        p, test = sign_flip(after - before, weight, resamples, rng), "sign-flip permutation"
    return {"n": len(before), "low": low, "high": high, "p": p, "test": test}, drawn


def bootstrap(difference: Array, weight: Array, resamples: int, rng: np.random.Generator) -> Array:
    """`resamples` weighted means of (n,) paired differences, items drawn with replacement."""
    # Items that are equal in difference and weight are interchangeable: their counts are multinomial, which is
    # thousands of times less work than drawing 10,000 items 10,000 times, as scipy does.
    distinct, counts = np.unique(np.stack([difference, weight]), axis=1, return_counts=True)
    drawn = rng.multinomial(len(difference), counts / len(difference), size=resamples)
    return np.asarray((drawn @ (distinct[0] * distinct[1])) / (drawn @ distinct[1]))


def sign_flip(difference: Array, weight: Array, resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p of the weighted sum of (n,) paired differences under random signs; exact where all 2^n signs are no
    more than `resamples`, else by Monte Carlo with the observed signs counted in: the p of scipy's permutation_test,
    which takes 0.6 s for 817 items where this takes 0.04, and a report asks some hundred times."""
    parts = (difference * weight)[difference != 0]
    observed = abs(parts.sum()) * (1 - 1e-12)  # rounding must not count the observed signs out
    exact = 2 ** len(parts) <= resamples
    if exact:
        signs = np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts)) & 1
    else:
        signs = rng.integers(0, 2, (resamples, len(parts)), dtype=np.int8)
    reached = int(np.sum(np.abs(2 * (signs @ parts) - parts.sum()) >= observed))
    return reached / len(signs) if exact else (reached + 1) / (resamples + 1)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected by Holm's step-down procedure, in the order given."""
    stepped = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[np.argsort(p_values)] = np.maximum.accumulate(stepped).clip(max=1.0)
    return [float(p) for p in corrected]


def _read(path: str | Path) -> tuple[Record, dict[str, Items]]:
    result = record.read(path)
    if (result.kind, result.status) != ("evaluation", "finished"):
        raise InputError(f"{path} is a record of {result.kind}, {result.status}; compare takes finished evaluations")
    items = record.read_items(path)
    for task, entry in result.tasks.items():
        if record.digest_of(items.get(task)) != entry["items_digest"]:
            raise InputError(f"{record.items_path(path)} does not belong to {path} ({task} differs); evaluate again")
    return result, items


def _check(base: Record, tuned: Record, which: str) -> None:
    """InputError that names all in which two records differ that moves a score and is not what is compared."""
    pairs: dict[str, list[Any]] = {}
    for name in sorted(base.settings.keys() | tuned.settings.keys()):
        pairs[name] = [each.settings.get(name) for each in (base, tuned)]
    for name in DECISIVE:
        if name != "peft" or (base.adapter and tuned.adapter):  # peft has no part in the scores of a bare base
            pairs[f"the version of {name}"] = [each.environment["packages"].get(name) for each in (base, tuned)]
    # an adapter is compared with its own base; without one two files of a model may be, such as its quantizations
    for name in ("revision", "digest") if tuned.adapter else ():
        pairs[f"the model's {name}"] = [each.model.get(name) for each in (base, tuned)]
    for name in ("config", "tokenizer", "template"):  # which records did not state before 2026-11
        stated = [each.model[name] for each in (base, tuned) if each.model.get(name)]
        pairs[f"the model's {name}"] = [stated[0], stated[-1]] if stated else []
    tasks = sorted(base.tasks.keys() & tuned.tasks.keys())
    for task in tasks:
        for name in ("metric", "parts", "version", "num_fewshot", "n", "items_hash"):
            pairs[f"{task}'s {name}"] = [each.tasks[task].get(name) for each in (base, tuned)]
    wrong = [f"{name} ({pair[0]} and {pair[1]})" for name, pair in pairs.items() if pair and pair[0] != pair[1]]
    wrong += [] if tasks else ["every task: they have none in common"]
    if wrong:
        raise InputError(f"{which} cannot be compared, they differ in {'; '.join(wrong)}: evaluate both the same way")


def settings_in_words(settings: dict[str, Any], device: str | None = None) -> str:
    """The settings that a reader of scores wants to know, as part of a sentence."""
    told = settings | {"device": device or settings.get("device"), "seeds": None}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items() if value is not None)


def markdown(head: list[str], rows: list[list[str]], aligned: bool = False) -> str:
    """A Markdown table, or "" where it has no rows; `aligned` for a terminal."""
    if not rows:
        return ""
    lines = [[cell.replace("|", "/") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) if aligned else 1 for column in zip(*lines, strict=False)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=False)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def short(name: str) -> str:
    """A model's or a data set's name without its owner or folder."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def with_error(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def with_interval(one: Row | Mean) -> str:
    return f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
