"""Two or more evaluations of the same items: which differences are clear of noise?

The first record is the base. Every statistic is paired, item by item:
- the interval is the percentile bootstrap over items (Efron and Tibshirani 1993), weights kept with their items;
- p is exact McNemar where items score 0 or 1 (McNemar 1947; exact as in Fagerland et al. 2013), else a sign-flip
  permutation test of the (weighted) mean difference (Good 2005);
- over the tasks of one record p is corrected by Holm (1979). A difference is called clear of noise where the corrected
  p is below 0.05. Other measures of a task are listed with uncorrected p, and are called nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import record
from .errors import InputError
from .record import Record

ALPHA = 0.05
RESAMPLES = 10_000
PACKAGES = ("torch", "transformers", "peft", "lm_eval")  # whose versions must agree
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Row:
    """One measure of one task in two records. `difference` is tuned less base, `low` and `high` its 95% interval;
    `p_holm` and `verdict` are set for a task's main metric alone."""

    record: str
    task: str
    metric: str
    higher_is_better: bool
    n: int
    base: float
    base_stderr: float | None
    tuned: float
    tuned_stderr: float | None
    difference: float
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
    """`rows` are the main metrics and `others` the remaining ones, record by record."""

    base: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    others: tuple[Row, ...]
    means: tuple[Mean, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self)

    def table(self) -> str:
        """The comparison as Markdown: a line on the settings, the tables, the means and the notes."""
        parts = [f"Base: {self.base}. {_said(self.settings)}", _markdown(self.rows, corrected=True)]
        for mean in self.means:
            tasks = ", ".join(mean.tasks)
            value = f"{mean.difference:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}]"
            parts.append(f"Mean difference of {mean.record} over {tasks}: {value}")
        if self.others:
            parts += ["Other measures (p not corrected):", _markdown(self.others, corrected=False)]
        return "\n\n".join([*parts, *self.notes])


def compare(records: list[str | Path], resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compare the records at these paths with the first. InputError where they cannot be compared, and why."""
    if len(records) < 2:
        raise InputError("name at least two records: the base first, then what is compared with it")
    base, base_items = _read(records[0])
    rows: list[Row] = []
    others: list[Row] = []
    means: list[Mean] = []
    notes: list[str] = []
    for path in records[1:]:
        tuned, items = _read(path)
        tasks = [task for task in base.tasks if task in tuned.tasks]
        _check(base, tuned, tasks, f"{records[0]} and {path}")
        left_out = sorted(base.tasks.keys() ^ tuned.tasks.keys())
        if left_out:
            notes.append(f"Not in both {base.name} and {tuned.name}, so left out: {', '.join(left_out)}.")
        rng = np.random.default_rng(seed)
        mine: list[Row] = []
        draws: dict[str, Array] = {}
        for task in tasks:
            if base_items[task]["id"] != items[task]["id"]:
                raise InputError(f"{records[0]} and {path} hold different items of {task}; evaluate both anew")
            for column in _metrics(base_items[task]):
                row, drawn = _row(task, column, (base, base_items[task]), (tuned, items[task]), resamples, rng)
                (mine if column == "value" else others).append(row)
                if column == "value" and row.metric.startswith("acc"):
                    draws[task] = drawn
        for row, p in zip(mine, holm([row.p for row in mine]), strict=True):
            verdict = "clear of noise" if p < ALPHA else "within noise"
            rows.append(Row(**asdict(row) | {"p_holm": p, "verdict": verdict}))
        if len(draws) > 1:
            low, high = np.quantile(np.mean(list(draws.values()), axis=0), [0.025, 0.975])
            value = float(np.mean([row.difference for row in mine if row.task in draws]))
            means.append(Mean(tuned.name, tuple(draws), value, float(low), float(high)))
    return Comparison(base.name, base.settings, tuple(rows), tuple(others), tuple(means), tuple(notes))


def bootstrap(difference: Array, weight: Array, resamples: int, rng: np.random.Generator) -> Array:
    """`resamples` weighted means of (n,) paired differences, items drawn with replacement."""
    # Items that are equal in difference and weight are interchangeable: their counts are multinomial.
    distinct, counts = np.unique(np.stack([difference, weight]), axis=1, return_counts=True)
    drawn = rng.multinomial(len(difference), counts / len(difference), size=resamples)
    return np.asarray((drawn @ (distinct[0] * distinct[1])) / (drawn @ distinct[1]))


def mcnemar(base: Array, tuned: Array) -> float:
    """Two-sided exact McNemar test of (n,) scores of 0 and 1: binomial over the items that differ."""
    gained, lost = int(np.sum(tuned > base)), int(np.sum(tuned < base))
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flip(difference: Array, weight: Array, resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p of the weighted sum of (n,) paired differences under random signs; exact where all 2^n signs are no
    more than `resamples`, else by Monte Carlo with the observed signs counted in."""
    parts = (difference * weight)[difference != 0]
    observed = abs(parts.sum()) * (1 - 1e-12)  # rounding must not count the observed signs out
    if 2 ** len(parts) <= resamples:
        signs = np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts)) & 1
        return float(np.mean(np.abs((2.0 * signs - 1) @ parts) >= observed))
    reached = 0
    for begin in range(0, resamples, 500):  # 500 x n signs at a time
        size = min(500, resamples - begin)
        signs = rng.integers(0, 2, (size, len(parts)), dtype=np.int8)
        reached += int(np.sum(np.abs(2 * (signs @ parts) - parts.sum()) >= observed))
    return (reached + 1) / (resamples + 1)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected by Holm's step-down procedure, in the order given."""
    corrected = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected


def _read(path: str | Path) -> tuple[Record, dict[str, dict[str, list[Any]]]]:
    result = record.read(path)
    if result.kind != "evaluation":
        raise InputError(f"{path} is a record of {result.kind}; compare takes what `iris evaluate` wrote")
    if result.status != "finished":
        raise InputError(f"{path} is of a run that {result.status}; evaluate again first")
    items = record.read_items(path)
    for task, entry in result.tasks.items():
        if record.digest_of(items.get(task)) != entry["items_digest"]:
            raise InputError(f"{record.items_path(path)} does not belong to {path} ({task} differs); evaluate again")
    return result, items


def _check(base: Record, tuned: Record, tasks: list[str], which: str) -> None:
    """InputError that names every setting, version and set of items in which two records differ."""
    if not tasks:
        raise InputError(f"{which} have no task in common")
    wrong = [
        f"{name} ({base.settings.get(name)} and {tuned.settings.get(name)})"
        for name in sorted(base.settings.keys() | tuned.settings.keys())
        if base.settings.get(name) != tuned.settings.get(name)
    ]
    for name in PACKAGES:
        first, second = (each.environment["packages"].get(name) for each in (base, tuned))
        if first != second:
            wrong.append(f"the version of {name} ({first} and {second})")
    for task in tasks:
        for name in ("metric", "version", "num_fewshot", "n", "items_hash", "chat_template_sha256"):
            first, second = base.tasks[task].get(name), tuned.tasks[task].get(name)
            if first != second:
                wrong.append(f"{task}'s {name} ({first} and {second})")
    if wrong:
        raise InputError(f"{which} cannot be compared, they differ in {'; '.join(wrong)}: evaluate both the same way")


def _metrics(columns: dict[str, list[Any]]) -> list[str]:
    return ["value", *(name for name in columns if name not in ("id", "weight", "value"))]


def _row(
    task: str,
    column: str,
    base: tuple[Record, dict[str, list[Any]]],
    tuned: tuple[Record, dict[str, list[Any]]],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[Row, Array]:
    entries = [each.tasks[task] for each, _ in (base, tuned)]
    metric = entries[0]["metric"] if column == "value" else column
    first, second = (entry if column == "value" else entry["others"][column] for entry in entries)
    scores = np.array([base[1][column], tuned[1][column]], dtype=np.float64)  # None, a score not asked for, becomes nan
    scored = np.logical_not(np.isnan(scores).any(axis=0))
    before, after = scores[:, scored]
    weight = np.asarray(base[1].get("weight") or np.ones(len(scored)), dtype=np.float64)[scored]
    drawn = bootstrap(after - before, weight, resamples, rng)
    low, high = np.quantile(drawn, [0.025, 0.975])
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all() and len(set(weight)) == 1:
        p, test = mcnemar(before, after), "exact McNemar"
    else:
        p, test = sign_flip(after - before, weight, resamples, rng), "sign-flip permutation"
    row = Row(
        record=tuned[0].name,
        task=task,
        metric=metric,
        higher_is_better=first["higher_is_better"],
        n=len(before),
        base=first["value"],
        base_stderr=first["stderr"],
        tuned=second["value"],
        tuned_stderr=second["stderr"],
        difference=second["value"] - first["value"],
        low=float(low),
        high=float(high),
        p=p,
        test=test,
    )
    return row, drawn


def _said(settings: dict[str, Any]) -> str:
    """The settings that a reader of scores wants to know, as a sentence."""
    shots = "zero-shot" if not settings.get("num_fewshot") else f"{settings['num_fewshot']}-shot"
    part = f", the first {settings['limit']} items only" if settings.get("limit") else ""
    return (
        f"Settings of all: {shots}, chat template for {settings.get('chat_template')}, {settings.get('precision')} on "
        f"{settings.get('device')}, batches of {settings.get('batch_size')}{part}."
    )


def _markdown(rows: tuple[Row, ...], corrected: bool) -> str:
    head = ["record", "task", "metric", "n", "base", "tuned", "difference", "95% interval", "p"]
    head += ["p (Holm)", "verdict"] if corrected else []
    lines = [head, ["-"] * len(head)]
    for row in rows:
        arrow = "higher" if row.higher_is_better else "lower"
        line = [row.record, row.task, f"{row.metric} ({arrow} is better)", str(row.n)]
        line += [_with_error(row.base, row.base_stderr), _with_error(row.tuned, row.tuned_stderr)]
        line += [f"{row.difference:+.4f}", f"[{row.low:+.4f}, {row.high:+.4f}]", _p(row.p)]
        if corrected:
            good = (row.difference > 0) == row.higher_is_better
            clear = row.verdict == "clear of noise"
            line += [_p(row.p_holm or 0.0), f"{'better' if good else 'worse'}, {row.verdict}" if clear else row.verdict]
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines[1] = ["-" * width for width in widths]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _with_error(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
