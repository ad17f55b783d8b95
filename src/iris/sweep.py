"""Many recipes, one study: the seed lab's grid, or a free search, chosen by held-out loss alone (never a benchmark).

Run as:  iris sweep --data verses --out runs/sweep                      # the grid of 72
    iris sweep --data verses --out runs/free --search free --trials 40 --minutes 120
    the same command again goes on after a kill; the same command beside it is one more worker
    iris sweep ... --storage postgresql+psycopg://USER:PASSWORD@HOST/NAME      # workers on several machines

The study is Optuna's: its queue deals the trials out, its heartbeat tells whose worker is gone. OUT/ holds study.db
(unless --storage names a database), trials/NUMBER/ (a run's folder each, with its record and log; the adapter of the
best only), sweep.md and parallel.png.
"""

import contextlib
import gc
import json
import math
import random
import re
import shutil
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from transformers import TrainerCallback

from . import InputError, RunError, record
from .compare import markdown
from .data import contamination, rows, template
from .model import load
from .poetry import verses
from .recipe import Recipe, check, make, one_of
from .train import fit, packing

SEARCHES = {  # the grid is the seed lab's; lora_alpha follows r
    "grid": "lr_scheduler_type=linear,cosine learning_rate=2e-2,2e-3,2e-4,2e-5 weight_decay=.1,.01,.001 r=16,32,64",
    "free": "lr_scheduler_type=linear,cosine,constant learning_rate=2e-5..2e-2 weight_decay=1e-3..1e-1 r=8,16,32,64",
}
FIXED = ("model", "data", "rows", "max_length", "engine", "report_to")  # other losses, or none, would be compared
HEARTBEAT, GRACE = 15, 60  # seconds: between two signs of life; without one until a worker is taken for dead
POLL = 2.0  # seconds between two looks at other workers' trials
HELD_OUT, MOST = 0.02, 200  # of a data set, and at most so many rows
CHECKS = 5  # measurements of the held-out loss a trial, the last one at its end; of fewer steps only then


class NotNeeded(Exception):
    """Another trial has this one's point, there are enough, or its time is over."""


@dataclass(eq=False)
class HeldOut(TrainerCallback):
    """Measures the loss on `held_out` CHECKS times over a trial and keeps it by step; ends the trial where Optuna says
    so, and with NotNeeded at `deadline` (time.monotonic())."""

    trial: optuna.Trial
    held_out: list[list[rows.Message]]
    max_length: int
    deadline: float
    losses: dict[int, float] = field(default_factory=dict)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if time.monotonic() > self.deadline:
            raise NotNeeded
        step, every = state.global_step, state.max_steps // CHECKS or state.max_steps
        if step % every and step < state.max_steps:
            return
        loss = mean_loss(given["model"], given["processing_class"], self.held_out, self.max_length)
        self.losses[step] = loss
        if step < state.max_steps:
            self.trial.report(loss, step // every)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def hold_out(recipe: Recipe, benchmarks: Path | None = None) -> tuple[rows.Dataset, list[list[rows.Message]]]:
    """The rows to train on, and those to choose by: the bundled verses' own held-out rows; of other data a seeded
    HELD_OUT, which are counted as dropped."""
    questions = contamination.read_questions(benchmarks) if benchmarks else None
    dataset = rows.load(recipe.data, recipe.rows, recipe.seed, questions)
    if recipe.data == "verses":
        return dataset, [rows.to_messages(row)[0] for row in verses.read_verses("held_out")]
    if len(dataset.rows) < 2:
        raise InputError(f"{recipe.data} has one row only; a sweep needs rows to learn from and others to choose by")
    count = min(MOST, max(1, round(HELD_OUT * len(dataset.rows))))
    chosen = set(random.Random(recipe.seed).sample(range(len(dataset.rows)), count))
    held_out = [row for index, row in enumerate(dataset.rows) if index in chosen]
    dataset.rows = [row for index, row in enumerate(dataset.rows) if index not in chosen]
    dataset.dropped["held out to choose by"] = count
    return dataset, held_out


def mean_loss(model: Any, tokenizer: Any, talks: list[list[rows.Message]], max_length: int) -> float:
    """Mean cross-entropy over the learned tokens of `talks`, in nats a token, of a model that gives its loss. They are
    cut to `max_length` tokens as in training, and each attends to itself alone. InputError if none fits."""
    encoded = [row for talk in talks if (row := template.encode_within(tokenizer, talk, max_length)[0])]
    if not encoded:
        raise InputError(f"no held-out row fits into max_length={max_length} tokens; raise it")
    total, learned, was_training = 0.0, 0, model.training
    model.eval()
    # the layers may be compiled for the one shape of training: not worth compiling for another
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for indices in packing.pack(encoded, max_length):
            batch = packing.collate([packing.packed_item([encoded[i] for i in indices])], tokenizer.pad_token_id)
            del batch["tokens"]
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            total += float(model(**inputs, max_seqlen=max_length))
            learned += int((inputs["labels"] != template.IGNORED).sum())
    model.train(was_training)
    return total / learned


def search_space(search: str, fixed: Collection[str] = (), over: Sequence[str] = ()) -> dict[str, Any]:
    """The space of "grid" or "free" without the `fixed` fields, with those of `over`: key=a,b,c are choices,
    key=low..high is a log-scaled range (free search only). InputError where one does not fit."""
    space: dict[str, Any] = {}
    for text in (*SEARCHES[one_of(search, list(SEARCHES), "search")].split(), *over):
        key, _, values = text.partition("=")
        if not values:
            raise InputError(f"--over {text} needs the form key=a,b,c or key=low..high")
        one_of(key, [item.name for item in fields(Recipe) if item.name not in FIXED], "field to search over")
        low, dots, high = values.partition("..")
        choices = [getattr(make([f"{key}={value}"]), key) for value in ((low, high) if dots else values.split(","))]
        if dots and (search == "grid" or not all(isinstance(one, float) and one > 0 for one in choices)):
            raise InputError(f"--over {text}: a range needs --search free and a field of positive decimal numbers")
        if isinstance(choices[0], tuple) or (key in fixed and text in over):
            raise InputError(f"{key} cannot be searched over{' and fixed' * (key in fixed)}")
        space[key] = CategoricalDistribution(choices)
        if dots:
            space[key] = FloatDistribution(min(choices), max(choices), log=True)
    return {key: kind for key, kind in space.items() if key not in fixed}


def sweep(
    recipe: Recipe,
    space: dict[str, Any],
    out: Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    storage: str | None = None,
    benchmarks: Path | None = None,
) -> optuna.Study:
    """Work on the study of `recipe` over `space` in `out` until it has its `trials`, whoever runs them (default: the
    whole grid), or `minutes` of this worker are spent. `storage`: an SQLAlchemy URL. Ranges are searched by TPE
    (Bergstra et al. 2011). InputError: another study in `out`, no budget. RunError: no trial finished."""
    grid = all(isinstance(kind, CategoricalDistribution) for kind in space.values())
    if not space or recipe.engine != "peft":
        raise InputError("nothing to search: leave a field unset" if not space else "a sweep needs engine=peft")
    if not grid and trials is None and minutes is None:
        raise InputError("a free search has no end of its own; give --trials or --minutes")
    deadline = time.monotonic() + 60 * (minutes or math.inf)
    load.resolve(recipe.model)
    dataset, held_out = hold_out(recipe, benchmarks)
    choices = product(*(kind.choices for kind in space.values())) if grid else ()
    points = [dict(zip(space, values, strict=True)) for values in choices]
    random.Random(recipe.seed).shuffle(points)  # so that a part of them covers the grid evenly
    points = points[:trials]
    most = len(points) or trials or 10**9
    stated = recipe.as_dict() | {"rows": dataset.fingerprint, "held-out rows": record.digest_of(held_out)}
    stated["search"] = {key: json.loads(distribution_to_json(kind)) for key, kind in space.items()}
    study = open_study(out, storage, stated)

    def objective(trial: optuna.Trial) -> float:
        study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + trial.number)  # no two workers draw alike
        point: dict[str, Any] = {}
        for key, kind in space.items():
            if isinstance(kind, CategoricalDistribution):
                point[key] = trial.suggest_categorical(key, kind.choices)
            else:
                point[key] = trial.suggest_float(key, kind.low, kind.high, log=True)
        # Two workers may queue a point at once: it belongs to the first trial that holds it.
        before = points_of(one for one in study.get_trials(deepcopy=False) if one.number < trial.number)
        if (grid and point in before) or len(before) >= most:
            raise NotNeeded
        watch = HeldOut(trial, held_out, recipe.max_length, deadline)
        outcome = run_trial(at(recipe, point), folder_of(out, trial), dataset, watch)
        trial.set_user_attr("outcome", outcome)
        loss = [math.nan, *watch.losses.values()][-1]
        print(f"trial {trial.number} {point}: {outcome}, held-out loss {loss:.4f}", flush=True)
        if outcome != "finished":
            raise optuna.TrialPruned
        return loss

    while time.monotonic() < deadline:
        optuna.storages.fail_stale_trials(study)
        known = study.get_trials(deepcopy=False)
        held = points_of(known)
        for point in points:
            if point not in held:  # new, or given back by a worker that was stopped or is gone
                study.enqueue_trial(point)
        if len(held) - sum(one.state == TrialState.WAITING for one in known) < most:
            try:
                study.optimize(objective, n_trials=1, catch=(NotNeeded,))
            # Optuna's, of a trial that another worker has ended as this one slept
            except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError):
                print("a trial was taken for dead and given to another worker; its result is dropped", flush=True)
            settle(study, out)
        elif any(one.state == TrialState.RUNNING for one in known):  # other workers': one of them may die yet
            time.sleep(min(POLL, max(0.0, deadline - time.monotonic())))
        else:
            break
    return conclude(study, out)


def at(recipe: Recipe, point: dict[str, Any]) -> Recipe:
    """The recipe at a point. Where r is searched and lora_alpha is not, their ratio stays the recipe's."""
    if "r" in point and "lora_alpha" not in point:
        point = point | {"lora_alpha": max(1, round(point["r"] * recipe.lora_alpha / recipe.r))}
    return replace(recipe, **point)


def open_study(out: Path, storage: str | None, stated: dict[str, Any]) -> optuna.Study:
    """The study in `storage` (default: OUT/study.db), made if there is none. InputError if it was begun with something
    else than `stated`, or the storage cannot be used."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    place = storage or f"sqlite:///{out / 'study.db'}"
    told = re.sub(r"(://[^/@]*?:)[^/]*@", r"\1***@", place)  # without the password
    engine = {"pool_pre_ping": True, "connect_args": {"timeout": 60} if place.startswith("sqlite") else {}}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
    # Of workers that begin at once on an empty database one makes the tables, and the others fail for a moment.
    for wait in (0.5, 1.0, 2.0, 4.0, None):
        try:
            out.mkdir(parents=True, exist_ok=True)
            database = optuna.storages.RDBStorage(place, engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
            study = optuna.create_study(storage=database, pruner=pruner, study_name="iris", load_if_exists=True)
            break
        except Exception as error:  # SQLAlchemy's, a driver's, the file system's: all mean the same here
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            if not wait or not re.search("IntegrityError|ProgrammingError|already exists", why):
                raise InputError(f"the storage {told} cannot be used ({why}); choose another --storage") from None
            time.sleep(wait * (1 + random.random()))
    if (known := study.user_attrs.get("stated", stated)) != stated:
        names = ", ".join(key for key in stated if known.get(key) != stated[key])
        raise InputError(f"the study in {told} was begun with another {names}; choose another --out")
    study.set_user_attr("stated", stated)
    return study


def points_of(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """Their settings (a waiting trial's are known to the queue only), but of the failed ones, which were given back."""
    return [one.system_attrs.get("fixed_params") or one.params for one in trials if one.state != TrialState.FAIL]


def folder_of(out: Path, trial: FrozenTrial | optuna.Trial) -> Path:
    return out / "trials" / f"{trial.number:04d}"


def run_trial(recipe: Recipe, folder: Path, dataset: rows.Dataset, watch: HeldOut) -> str:
    """Train `recipe` into `folder` and add to its record what it is chosen by. Returns finished, pruned, or "diverged"
    or "failed" with the reason; raises what ends it from outside (Ctrl-C, the deadline, a broken GPU)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path, outcome = folder / "record.json", "finished"
    fresh = replace(dataset, **{name: copy(value) for name, value in vars(dataset).items()})  # fit counts in it
    try:
        with open(folder / "log.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            fit.fit(check(recipe), folder, dataset=fresh, callbacks=[watch])
        if not math.isfinite([*watch.losses.values()][-1]):
            outcome = "diverged: the held-out loss is not a number"
    except optuna.TrialPruned:
        outcome = "pruned"
    except (NotNeeded, torch.AcceleratorError):  # after the latter this process can use the GPU no more
        raise
    except Exception as error:
        status = record.read(path).status if path.exists() else ""
        if status == "stopped":
            raise RunError("stopped; its trial is back in the queue, the same command goes on") from None
        why = (str(error).splitlines() or [""])[0] or type(error).__name__
        outcome = f"{'diverged' if status == 'failed' else 'failed'}: {why}"
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.compiler.reset()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if path.exists():  # else it had not begun
        result = record.read(path)
        if outcome != "finished":
            result.status, result.note = "stopped" if outcome == "pruned" else "failed", outcome
        losses = {str(step): loss if math.isfinite(loss) else None for step, loss in watch.losses.items()}
        result.measures |= {"held_out_loss": [None, *losses.values()][-1], "held_out_losses": losses}
        record.write(result, path)
    return outcome


def settle(study: optuna.Study, out: Path) -> list[FrozenTrial]:
    """Write sweep.md, the best trial first, and delete what is not needed (72 adapters of a 1B would fill a disk).
    Returns the trials in order."""
    every = study.get_trials(deepcopy=False)
    ended = [one for one in every if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    ranked = sorted(ended, key=lambda one: (one.state, math.inf if one.value is None else one.value, one.number))
    lines = []
    for rank, one in enumerate(ranked, 1):
        values = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in one.params.values()]
        loss = "" if one.value is None else f"{one.value:.4f}"
        seconds = f"{one.duration.total_seconds():.0f}" if one.duration else ""
        lines.append([str(rank), str(one.number), *values, loss, one.user_attrs["outcome"], seconds])
        for path in [*folder_of(out, one).glob("checkpoint-*"), *[folder_of(out, one) / "adapter"] * (rank > 1)]:
            shutil.rmtree(path, ignore_errors=True)
    for one in every:
        if one.state == TrialState.FAIL:
            shutil.rmtree(folder_of(out, one), ignore_errors=True)
    names = list(ranked[0].params) if ranked else []
    text = markdown(["rank", "trial", *names, "held-out loss", "outcome", "seconds"], lines)
    told = "Held-out loss in nats a learned token; a pruned trial's is its last. Chosen by it alone.\n\n"
    record.write_atomic(out / "sweep.md", f"{told}{text}\n".encode())
    return ranked


def conclude(study: optuna.Study, out: Path) -> optuna.Study:
    """Write the table and the picture (a line a finished trial), say which is the best. RunError if none finished."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as plots

    ranked = settle(study, out)
    if not ranked or ranked[0].state != TrialState.COMPLETE:
        raise RunError(f"no trial finished; give it more --minutes, or see why in {out / 'sweep.md'}")
    plots.plot_parallel_coordinate(study, target=lambda trial: trial.values[0], target_name="held-out loss")
    plt.gcf().set_size_inches(9, 4.5)
    plt.savefig(out / "parallel.png", bbox_inches="tight")
    plt.close()
    best = ranked[0]
    values = ", ".join(f"{key}={value}" for key, value in best.params.items())
    print(f"best of {len(ranked)}: trial {best.number}, held-out loss {best.values[0]:.4f} ({values})")
    print(f"its adapter: {folder_of(out, best) / 'adapter'}, where it ran; all trials: {out / 'sweep.md'}")
    return study
