"""One trial of a sweep: a training run that is judged, on its way and at its end, by its loss on held-out rows."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState
from transformers import TrainerCallback

from . import chat, data, record, train
from .errors import InputError, RunError
from .loss import linear_cross_entropy
from .poetry import verses
from .recipe import Recipe
from .study import settle, signs_of_life

Rows = list[list[data.Message]]
HELD_OUT_SHARE, HELD_OUT_MOST = 0.02, 200
CHECKS = 5  # held-out loss is measured so many times a run, the last time at its end; of fewer steps only then


class OutOfTime(Exception):
    """The budget in minutes ended in the middle of a trial."""


def hold_out(recipe: Recipe, benchmarks: Path | None = None) -> tuple[data.Dataset, Rows]:
    """The rows to train on, and those to choose by: the bundled verses' own held-out rows; of other data a seeded 2%,
    at most 200, which are counted as dropped."""
    dataset = data.load(
        recipe.data, recipe.rows, recipe.seed, data.benchmark_ngrams(benchmarks) if benchmarks else None
    )
    if recipe.data == "verses":
        return dataset, [data.to_messages(row)[0] for row in verses.read_verses("held_out")]
    count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(dataset.rows))))
    if len(dataset.rows) < 2:
        raise InputError(f"{recipe.data} has one row only; a sweep needs rows to learn from and others to choose by")
    chosen = set(random.Random(recipe.seed).sample(range(len(dataset.rows)), count))
    held_out = [row for index, row in enumerate(dataset.rows) if index in chosen]
    dataset.rows = [row for index, row in enumerate(dataset.rows) if index not in chosen]
    dataset.dropped["held out to choose by"] = count
    return dataset, held_out


def held_out_loss(model: Any, tokenizer: Any, rows: Rows, max_length: int) -> float:
    """Mean cross-entropy over the learned tokens of `rows` (messages) under a PEFT model of model.load, in nats a
    token. Rows are cut to `max_length` tokens as in training, each attends to itself alone."""
    encoded = [row for messages in rows if (row := chat.fit(chat.encode(tokenizer, messages), max_length)[0])]
    if not encoded:
        raise InputError(f"no held-out row fits into max_length={max_length} tokens; raise it")
    llama, device = model.get_base_model(), model.device
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)  # as in Trainer.compute_loss
    total, learned, was_training = 0.0, 0, model.training
    model.eval()
    # the layers may be compiled for the one shape of training: not worth compiling for another
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for indices in chat.pack(encoded, max_length):
            batch = chat.collate([chat.packed_item([encoded[i] for i in indices])], tokenizer.pad_token_id)
            del batch["tokens"]
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = inputs.pop("labels")[0]
            hidden = llama.model(
                **inputs, attention_mask=mask, max_seqlen=max_length, use_cache=False
            ).last_hidden_state
            total += float(linear_cross_entropy(hidden[0], llama.lm_head.weight, labels))
            learned += int((labels != chat.IGNORED).sum())
    model.train(was_training)
    return total / learned


class HeldOut(TrainerCallback):
    """Measures held-out loss CHECKS times over a run; ends a hopeless trial, and one that meets the deadline."""

    def __init__(self, trial: optuna.Trial, rows: Rows, max_length: int, deadline: float) -> None:
        self.trial, self.rows, self.max_length, self.deadline = trial, rows, max_length, deadline
        self.losses: dict[int, float] = {}  # by step

    @property
    def last(self) -> float:
        return next(reversed(self.losses.values()), math.nan)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime
        every = state.max_steps // CHECKS or state.max_steps
        if state.global_step % every == 0 and state.global_step < state.max_steps:
            self.measure(state.global_step, given)
            self.trial.report(self.losses[state.global_step], state.global_step // every)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == state.max_steps:  # else it was stopped
            self.measure(state.global_step, given)

    def measure(self, step: int, given: Any) -> None:
        self.losses[step] = held_out_loss(given["model"], given["processing_class"], self.rows, self.max_length)


def folder_of(out: Path, number: int) -> Path:
    """The run's folder of a trial."""
    return out / "trials" / f"{number:04d}"


def run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    recipe: Recipe,
    out: Path,
    dataset: data.Dataset,
    held_out: Rows,
    deadline: float,
) -> None:
    """Train `recipe` into the trial's folder, write its record and settle the trial. What ends it from outside (Ctrl-C,
    the deadline, a fault) gives its point back and is raised."""
    folder = folder_of(out, trial.number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    watch = HeldOut(trial, held_out, recipe.max_length, deadline)
    rows = replace(dataset, rows=list(dataset.rows), dropped=dataset.dropped.copy(), cut=dataset.cut.copy())
    state, outcome, note = TrialState.COMPLETE, "finished", ""
    try:
        with signs_of_life(trial), open(folder / "log.txt", "w") as log, contextlib.redirect_stdout(log):
            try:
                train.fit(recipe, folder, dataset=rows, callbacks=[watch])
                if not math.isfinite(watch.last):
                    state, outcome, note = TrialState.PRUNED, "diverged", "the held-out loss is not a number"
            except optuna.TrialPruned:
                state, outcome, note = TrialState.PRUNED, "pruned", f"pruned at held-out loss {watch.last:.4f}"
            except RunError as error:
                if not (folder / "record.json").exists():  # it had not begun: the model cannot be loaded, say
                    raise
                ended = record.read(folder / "record.json").status
                if ended == "stopped":
                    raise RunError("stopped; its trial is back in the queue, the same command goes on") from None
                diverged = ended == "failed"
                state, outcome = (TrialState.PRUNED, "diverged") if diverged else (TrialState.FAIL, "failed")
                note = str(error)
        add_to_record(folder, trial.number, watch, held_out, outcome, note)
        trial.set_user_attr("outcome", outcome)
        mine = settle(study, trial.number, state, watch.last if state == TrialState.COMPLETE else None)
    except optuna.exceptions.UpdateFinishedTrialError:
        mine = False
    except BaseException:
        settle(study, trial.number, TrialState.FAIL)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        free_memory()
    if mine:
        print(f"trial {trial.number} {trial.params}: {outcome}, held-out loss {watch.last:.4f}", flush=True)
    else:  # this machine slept, say
        shutil.rmtree(folder, ignore_errors=True)
        print(f"trial {trial.number} was taken for dead and given to another worker; its result is dropped", flush=True)


def add_to_record(folder: Path, number: int, watch: HeldOut, held_out: Rows, outcome: str, note: str) -> None:
    """Add to the run's record what it was chosen by; a pruned run is a stopped one."""
    result = record.read(folder / "record.json")
    if outcome != "finished":
        result.status, result.note = "stopped" if outcome == "pruned" else "failed", note
    losses = {str(step): loss if math.isfinite(loss) else None for step, loss in watch.losses.items()}
    result.measures |= {"held_out_loss": losses.get(str(max(watch.losses, default=0))), "held_out_losses": losses}
    result.settings["sweep"] = {"trial": number, "held_out": record.digest_of(held_out), "held_out_rows": len(held_out)}
    record.write(result, folder / "record.json")


def free_memory() -> None:
    """Forget the trial's model and compiled code; peak memory is counted anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
