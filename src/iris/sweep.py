"""Many recipes, one study: the seed lab's grid, or a free search, chosen by held-out loss alone (never a benchmark).

    iris sweep --data verses --out runs/sweep                      # the grid of 72
    iris sweep --data verses --out runs/free --search free --trials 40 --minutes 120
    the same command again: goes on after a kill; the same command elsewhere: one more worker

OUT/ holds study.journal (Optuna's, unless --storage names a database), trials/NUMBER/ (a run's folder each, with its
record; the adapter of the best only), sweep.md, parallel.png and importance.png.

Who runs which trial, and how a dead worker's trial is run again, is study.py's matter.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from . import pictures, record
from .errors import InputError, RunError
from .recipe import Recipe, check, make, one_of
from .study import PRUNERS, Space, fill_queue, grid_points, live, open_study, owns, return_dead, settle
from .trial import OutOfTime, folder_of, hold_out, run_trial

SEARCHES = ("grid", "free")
GRID: Space = {  # the seed lab's; lora_alpha follows r
    "lr_scheduler_type": CategoricalDistribution(("linear", "cosine")),
    "learning_rate": CategoricalDistribution((2e-2, 2e-3, 2e-4, 2e-5)),
    "weight_decay": CategoricalDistribution((0.1, 0.01, 0.001)),
    "r": CategoricalDistribution((16, 32, 64)),
}
FREE: Space = {
    "lr_scheduler_type": CategoricalDistribution(("linear", "cosine", "constant")),
    "learning_rate": FloatDistribution(2e-5, 2e-2, log=True),
    "weight_decay": FloatDistribution(1e-3, 1e-1, log=True),
    "r": CategoricalDistribution((8, 16, 32, 64)),
}
FIXED = ("model", "data", "rows", "max_length", "engine", "report_to")  # other losses, or none, would be compared
POLL = 2.0  # seconds between two looks at other workers' trials


def search_space(search: str, settings: list[str] | None = None, over: list[str] | None = None) -> Space:
    """The space of "grid" or "free": without the fields that `settings` (key=value) fix, with those of `over`:
    key=a,b,c are choices, key=low..high is a log-scaled range (free search only). InputError where one does not fit."""
    space = dict(GRID if one_of(search, SEARCHES, "search") == "grid" else FREE)
    fixed = {setting.partition("=")[0] for setting in settings or []}
    for text in over or []:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise InputError(f"--over {text} needs the form key=a,b,c or key=low..high")
        one_of(key, [item.name for item in fields(Recipe) if item.name not in FIXED], "field to search over")
        if key in fixed:
            raise InputError(f"{key} is both fixed by --set and searched by --over; leave one of the two")
        low, dots, high = values.partition("..")
        choices = tuple(
            getattr(make([f"{key}={value}"]), key) for value in ((low, high) if dots else values.split(","))
        )
        if dots and (search == "grid" or not all(isinstance(c, float) and c > 0 for c in choices)):
            raise InputError(f"--over {text}: a range needs --search free and a field of positive decimal numbers")
        if not all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices):
            raise InputError(f"{key} cannot be searched over; fix it with --set")
        space[key] = (
            FloatDistribution(min(choices), max(choices), log=True) if dots else CategoricalDistribution(choices)
        )
    return {key: values for key, values in space.items() if key not in fixed}


def sweep(
    recipe: Recipe,
    space: Space,
    out: Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    storage: str | None = None,
    pruner: str = "median",
    benchmarks: Path | None = None,
) -> optuna.Study:
    """Work on the study of `recipe` over `space` in `out` until it is complete or the budget is spent.

    `trials` counts the study's, whoever ran them (default: the whole grid); `minutes` are this worker's. `storage` is
    a journal file or an SQLAlchemy URL. A space with ranges is searched by TPE (Bergstra et al. 2011), a grid in a
    seeded order. InputError: another study in `out`, no budget for a free search. RunError: no trial finished."""
    grid = all(isinstance(values, CategoricalDistribution) for values in space.values())
    if not space or recipe.engine != "peft":
        raise InputError("nothing to search: leave a field unset" if not space else "a sweep needs engine=peft")
    if not grid and trials is None and minutes is None:
        raise InputError("a free search has no end of its own; give --trials or --minutes")
    for name, number in (("--trials", trials), ("--minutes", minutes)):
        if number is not None and number <= 0:
            raise InputError(f"{name} must be above zero, not {number}")
    one_of(pruner, PRUNERS, "pruner")
    deadline = time.monotonic() + 60 * (minutes or math.inf)
    dataset, held_out = hold_out(recipe, benchmarks)
    stated = {"recipe": recipe.as_dict(), "data": dataset.fingerprint, "held_out": record.digest_of(held_out)}
    stated |= {"space": {key: json.loads(distribution_to_json(values)) for key, values in space.items()}}
    study = open_study(out, storage, pruner, stated)
    points = grid_points(space, recipe.seed)[:trials] if grid else []
    for point in points:
        check(at(recipe, point))
    most = len(points) if grid else trials or 10**9
    seen: dict[int, tuple[Any, float]] = {}
    longest = 0.0
    while time.monotonic() + longest < deadline:
        for number in return_dead(study, seen):
            print(f"trial {number}: its worker is gone, it is run again", flush=True)
            shutil.rmtree(folder_of(out, number), ignore_errors=True)
        fill_queue(study, points, space)
        states = [one.state for one in live(study)]
        if TrialState.WAITING in states or (not grid and len(states) < most):
            seed = recipe.seed + len(study.get_trials(deepcopy=False))  # no two workers draw the same numbers
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = study.ask(space)
            if not owns(study, trial, most):
                trial.set_user_attr("outcome", "not needed")
                settle(study, trial.number, TrialState.FAIL)
                continue
            begin = time.monotonic()
            try:
                run_trial(study, trial, at(recipe, trial.params), out, dataset, held_out, deadline)
            except OutOfTime:
                break
            longest = max(longest, time.monotonic() - begin)
            keep_best_adapter(study, out)
            write_table(study, out)
        elif TrialState.RUNNING in states:  # other workers': one of them may die yet
            time.sleep(min(POLL, max(0.0, deadline - time.monotonic())))
        else:
            break
    return conclude(study, out)


def at(recipe: Recipe, point: dict[str, Any]) -> Recipe:
    """The recipe at a point. Where r is searched and lora_alpha is not, their ratio stays the recipe's."""
    if "r" in point and "lora_alpha" not in point:
        point = point | {"lora_alpha": max(1, round(point["r"] * recipe.lora_alpha / recipe.r))}
    return replace(recipe, **point)


def keep_best_adapter(study: optuna.Study, out: Path) -> None:
    """Delete checkpoints, and adapters of all but the best trial: 72 of a 1B model would fill a disk."""
    settled = [one for one in live(study) if one.state.is_finished()]
    complete = [one for one in settled if one.state == TrialState.COMPLETE]
    best = min(complete, key=lambda one: one.values[0], default=None)
    for one in settled:
        folder = folder_of(out, one.number)
        for path in [*folder.glob("checkpoint-*"), *([] if one is best else [folder / "adapter"])]:
            shutil.rmtree(path, ignore_errors=True)


# --- what came out ---------------------------------------------------------------------------------------------------


def conclude(study: optuna.Study, out: Path) -> optuna.Study:
    """Write the table and the pictures, say which trial is the best. RunError if none finished."""
    ranked = write_table(study, out)
    complete = [one for one in ranked if one.state == TrialState.COMPLETE]
    if not complete:
        raise RunError(f"no trial finished; give it more --minutes, or see why in {out / 'sweep.md'}")
    pictures.save(out / "parallel.png", pictures.draw_parallel, parallel(ranked))
    if shares := importance(ranked):
        title = f"what sets the best tenth of {len(ranked)} trials apart (PED-ANOVA)"
        pictures.save(out / "importance.png", pictures.draw_importance, {"shares": shares, "title": title})
    best = complete[0]
    told = ", ".join(f"{key}={value}" for key, value in best.params.items())
    print(f"best of {len(ranked)}: trial {best.number}, held-out loss {best.values[0]:.4f} ({told})")
    adapter = folder_of(out, best.number) / "adapter"
    where = "" if adapter.exists() else f" on {best.user_attrs['alive']['machine'].split()[0]}, where it ran"
    print(f"its adapter: {adapter}{where}; all trials: {out / 'sweep.md'}")
    return study


def write_table(study: optuna.Study, out: Path) -> list[FrozenTrial]:
    """Write sweep.md, one row a settled trial, the best first; returns them in that order."""
    settled = [one for one in live(study) if one.state.is_finished()]
    ranked = sorted(settled, key=lambda one: (one.state, one.value if one.value is not None else math.inf, one.number))
    names = list(ranked[0].params) if ranked else []
    lines = [["rank", "trial", *names, "held-out loss", "outcome", "seconds"]]
    lines.append(["-"] * len(lines[0]))
    for rank, one in enumerate(ranked, 1):
        values = [_short(one.params[name]) for name in names]
        loss = f"{one.value:.4f}" if one.value is not None else ""
        seconds = f"{one.duration.total_seconds():.0f}" if one.duration else ""
        lines.append([str(rank), str(one.number), *values, loss, one.user_attrs["outcome"], seconds])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    held_out = "Held-out loss in nats a learned token; a pruned trial's is its last. Chosen by it alone.\n\n"
    record.write_atomic(out / "sweep.md", (held_out + text + "\n").encode())
    return ranked


def importance(ranked: list[FrozenTrial]) -> dict[str, float]:
    """The share of each setting in what tells the best tenth of the trials from all (PED-ANOVA, Watanabe et al. 2023);
    empty for fewer than five. Pruned trials count with their last loss: without the bad ones nothing would matter."""
    judged = [one for one in ranked if one.value is not None]
    if len({one.value for one in judged}) < 5:
        return {}
    study = optuna.create_study()
    for one in judged:
        study.add_trial(optuna.create_trial(value=one.value, params=one.params, distributions=one.distributions))
    return optuna.importance.get_param_importances(study)


def parallel(ranked: list[FrozenTrial]) -> dict[str, Any]:
    """What pictures.draw_parallel shows: every axis from 0 to 1, the loss clipped where it is hopeless."""
    losses = sorted(one.value for one in ranked if one.value is not None)
    low, high = losses[0], min(losses[-1], losses[0] + 3 * (losses[len(losses) // 2] - losses[0]) + 1e-9)

    def place(name: str, value: Any) -> float:
        kind = ranked[0].distributions[name]
        if isinstance(kind, CategoricalDistribution):
            choices = sorted(kind.choices, key=lambda choice: (isinstance(choice, str), choice))
            return choices.index(value) / max(1, len(choices) - 1)
        assert isinstance(kind, FloatDistribution)
        return math.log(value / kind.low) / math.log(kind.high / kind.low)

    def loss_place(value: float | None) -> float:
        return 1.0 if value is None else min(1.0, (value - low) / max(high - low, 1e-9))

    axes = []
    for name, kind in ranked[0].distributions.items():
        ends = kind.choices if isinstance(kind, CategoricalDistribution) else (kind.low, kind.high)  # type: ignore[attr-defined]
        axes.append({"name": name, "ticks": [[place(name, end), _short(end)] for end in ends]})
    clipped = "≥ " if high < losses[-1] else ""
    axes.append({"name": "held-out loss", "ticks": [[0.0, f"{low:.3f}"], [1.0, f"{clipped}{high:.3f}"]]})
    trials = [
        {
            "places": [*(place(name, value) for name, value in one.params.items()), loss_place(one.value)],
            "rank": rank / max(1, len(ranked) - 1),
            "pruned": one.state != TrialState.COMPLETE,
        }
        for rank, one in enumerate(ranked)
    ]
    return {"axes": axes, "trials": trials}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
