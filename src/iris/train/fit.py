"""Fit, stop on time, resume, save. `fit` is the main path; read it first.

Run as:  iris train --data verses --out runs/first
    accelerate launch --multi_gpu --num_processes 2 -m iris train --data verses --out runs/first

A run's folder holds adapter/ (PEFT), record.json, loss.png and checkpoint-N/ folders. A checkpoint counts only once
its manifest is written, so that one cut in half by a kill is passed over.
"""

import gc
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback, set_seed

from .. import InputError, RunError
from ..data import contamination, rows, template
from ..model import hardware, load
from ..recipe import FREE_TO_CHANGE, Recipe
from ..record import Record, folder_digest, read, write
from . import attention, checkpoints, fp8, lora, loss, memory, packing
from .trainer import NothingLeft, Trainer

LAST_UPLOAD = 600  # seconds that the end of a run without a budget waits for the last checkpoint to reach the Hub


@dataclass
class Run:
    """One training run: what to do and where, from when until when (time.monotonic(), seconds), and what happened. One
    that is resumed goes on from `checkpoint`, and `before` has the seconds and memory of its earlier parts. Of the
    processes of `state`, which share each step, the first writes and speaks."""

    recipe: Recipe
    out: Path
    began: float
    deadline: float
    record: Record
    state: PartialState
    checkpoint: Path | None = None
    before: dict[str, Any] = field(default_factory=dict)
    keeper: checkpoints.Keeper | None = None


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool | None = False,
    minutes: float | None = None,
    strict: bool = False,
    benchmarks: Path | None = None,
    dataset: rows.Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Record:
    """Train the adapter that `recipe` describes into `out`; returns the run's record, which is also written there.

    `resume`: go on with the run in `out` (None: if there is one); a finished one stays as it is. `minutes` bounds the
    whole call; the learning rate has decayed to zero by then. `strict`: a dropped or cut row is an InputError.
    `benchmarks`: a folder of files whose questions must not be trained on. `dataset`: recipe.data, read already. Where
    accelerate has started several processes each of them calls this and gets the record; all must see `out`."""
    run = begin(recipe, out, resume, minutes)
    if run.record.status == "finished":
        return run.record
    source = load.resolve(recipe.model)
    tokenizer = template.load_tokenizer(source.path, source.hub_revision)
    load.check(source, tokenizer)
    note(run, "model", source.as_dict())
    if dataset is None:
        questions = contamination.read_questions(benchmarks) if benchmarks else None
        dataset = rows.load(recipe.data, recipe.rows, recipe.seed, questions)
    if recipe.plan_share and not dataset.planned:
        rows.add_plans(dataset, recipe.plan_share, recipe.seed)
    sequences = pack(run, dataset, tokenizer, strict)
    set_seed(recipe.seed)
    model = load.load(source, recipe, run.record.settings["precision"], attention.register())
    if recipe.engine == "peft":
        lora.speed_up(model)
        if recipe.precision == "fp8":
            fp8.quantize_base(model)
        loss.give_loss(model.get_base_model())
    trainer = train(run, model, tokenizer, sequences, callbacks)
    return finish(run, trainer)


def begin(recipe: Recipe, out: Path, resume: bool | None, minutes: float | None) -> Run:
    """The run in `out`, new or to be gone on with; finished, if nothing is left to do. InputError where that cannot be.
    Until its first step is done a run leaves nothing in `out` that would be in the way of another."""
    began, on_gpu = time.monotonic(), torch.cuda.is_available()
    if not on_gpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # several would have cpu:0, which torch.load takes for no device
    state = PartialState(cpu=not on_gpu)
    shared = f"{state.num_processes} processes that take {recipe.micro_batch or 1} sequences at a time"
    if recipe.batch_size % (state.num_processes * (recipe.micro_batch or 1)):
        raise InputError(f"batch_size={recipe.batch_size} cannot be shared evenly by {shared}; choose another")
    if state.num_processes > 1 and (recipe.engine != "peft" or (recipe.fsdp and recipe.quantized)):
        raise InputError("several GPUs need engine=peft, and fsdp a base that is not in 4 or 8 bits")
    if not state.is_main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    settings: dict[str, Any] = {"precision": hardware.precision(recipe.precision), "device": hardware.device_name()}
    settings |= {"processes": state.num_processes, "minutes": minutes, "template_date": template.TEMPLATE_DATE}
    new = Record("training", out.name, {}, recipe=recipe.as_dict(), settings=settings)
    run = Run(recipe, out, began, math.inf if minutes is None else began + 60 * minutes, new, state)
    with state.main_process_first():
        open_folder(run, resume)
    return run


def open_folder(run: Run, resume: bool | None) -> None:
    """Make the run's folder; with `resume` find what to go on from. InputError for no run, or another."""
    out, recipe, path = run.out, run.recipe, run.out / "record.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None
    if recipe.push_checkpoints and run.state.is_main_process:
        run.keeper = checkpoints.Keeper(recipe.push_checkpoints, out)
        if resume is not False and not path.exists():
            run.keeper.fetch()
    resume = path.exists() if resume is None else resume
    if not resume:
        if path.exists() or list(out.glob("checkpoint-*")):
            raise InputError(f"{out} holds a run already; add --resume to go on with it, or choose another --out")
        return
    if not path.exists():
        raise InputError(f"there is no run in {out} to resume; run without --resume")
    earlier = read(path)
    was = earlier.recipe or {}
    differing = [key for key, value in recipe.as_dict().items() if was.get(key) != value]
    if changed := ", ".join(f"{key} was {was.get(key)}" for key in differing if key not in FREE_TO_CHANGE):
        raise InputError(f"the run in {out} has another recipe ({changed}); take the same, or choose another --out")
    same_length = (recipe.max_steps, recipe.num_train_epochs) == (was["max_steps"], was["num_train_epochs"])
    if earlier.status == "finished" and same_length and (out / "adapter").exists():
        print(f"the run in {out} is finished and stays as it is; choose another --out to train anew", flush=True)
        run.record = earlier
        return
    run.checkpoint = checkpoints.last(out)
    if run.checkpoint is None:
        print(f"the run in {out} was stopped before its first checkpoint; it begins anew", flush=True)
        return
    steps = int(run.checkpoint.name.rpartition("-")[2])
    if 0 < recipe.max_steps < steps:
        raise InputError(f"the run in {out} is {steps} steps long already; choose --max-steps {steps} or more")
    print(f"resuming from {run.checkpoint.name}", flush=True)
    run.before = dict(earlier.measures)
    run.record = replace(run.record, model=earlier.model, data=earlier.data, started=earlier.started)


def note(run: Run, what: str, now: dict[str, Any]) -> None:
    """Put the run's "model" or "data" into its record. InputError if a resumed run began with another."""
    before = getattr(run.record, what)
    for key in ("revision", "digest", "fingerprint", "tokens", "sequences"):
        if run.checkpoint and before.get(key) != now.get(key):
            was = f"{key} was {before.get(key)}, is {now.get(key)}"
            raise InputError(f"the run in {run.out} began with other {what} ({was}); put it back or take another --out")
    setattr(run.record, what, now)


def pack(run: Run, dataset: rows.Dataset, tokenizer: Any, strict: bool) -> list[dict[str, Any]]:
    """The data set as packed sequences of at most max_length tokens; tells what is kept, cut and dropped, and shows the
    first row with what is learned in bold. InputError if no row fits, or with `strict` if anything is lost."""
    kept, encoded, most = [], [], run.recipe.max_length
    quiet = len(dataset.rows) < 2000 or not run.state.is_main_process
    for messages in tqdm(dataset.rows, "tokenizing", unit=" rows", disable=quiet):
        row, reason = template.encode_within(tokenizer, messages, most)
        if reason:
            (dataset.cut if row else dataset.dropped)[reason] += 1
        if row:
            dataset.unread.update(row.unread)
            kept.append(messages)
            encoded.append(row)
    dataset.rows = kept
    if not kept:
        why = "; ".join(f"{count} x {reason}" for reason, count in dataset.dropped.items())
        raise InputError(f"no row of {dataset.id} can be trained on within max_length={most} ({why})")
    bins, facts = packing.pack(encoded, most), dataset.as_dict()
    total = sum(len(row.input_ids) for row in encoded)
    share = sum(label != template.IGNORED for row in encoded for label in row.labels) / total
    read_rows = dataset.read + dataset.planned
    told = [f"{dataset.id}: {len(kept):,} of {read_rows:,} rows, {total:,} tokens, {share:.0%} of them learned"]
    told += [f"{dataset.planned:,} of these are poems once more, with end words named"] * bool(dataset.planned)
    for what, counts in (("dropped", dataset.dropped), ("shortened", dataset.cut), ("not read in", dataset.unread)):
        told += [f"{what} {count:,}: {reason}" for reason, count in counts.most_common()]
    told += [f"{part['id']}: {part['rows']:,} of {part['read']:,} rows" for part in facts["parts"]]
    told += [f"{facts['plain']:,} rows are plain text, which is learned whole"] * bool(facts["plain"])
    if asked := facts["questions"]:
        told += [f"benchmark questions: {asked['looked_for']:,} looked for, {asked['too_short']:,} too short for that"]
    told += ["the first row; what is learned is in bold:"]
    told += template.preview(tokenizer, encoded[0], ("\033[1m", "\033[0m")).splitlines()
    print("\n  ".join(told), flush=True)
    if strict and (lost := dict(dataset.dropped | dataset.cut | dataset.unread)):
        raise InputError(f"--strict: {lost}; mend these rows or train without --strict")
    note(run, "data", facts | {"tokens": total, "sequences": len(bins)})
    return [packing.packed_item([encoded[index] for index in indices]) for indices in bins]


def train(
    run: Run, model: Any, tokenizer: Any, sequences: list[dict[str, Any]], callbacks: Sequence[TrainerCallback]
) -> Trainer:
    """Train by the best plan that fits into memory; the plan goes into the run's record."""
    recipe, base, processes, steps = run.recipe, model.get_base_model(), run.state.num_processes, run.recipe.max_steps
    if steps < 1:
        steps = math.ceil(recipe.num_train_epochs * math.ceil(len(sequences) / recipe.batch_size))
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    fresh = {name: weight.detach().to("cpu", copy=True) for name, weight in learned.items()}
    options = memory.plans(recipe, base.config, base.num_parameters(), steps, processes)
    for plan in options:
        run.record.settings["plan"] = asdict(plan)
        if plan.sharded:
            memory.shard(model, run.state.device)
        elif not recipe.four_bit:
            model.to(run.state.device)
        trainer = Trainer(run, model, tokenizer, sequences, plan)
        for callback in [*callbacks, *([run.keeper] if run.keeper else [])]:
            trainer.add_callback(callback)
        how = ", gradient checkpointing" * plan.checkpointing + ", base sharded (FSDP2)" * plan.sharded
        how += ", compiled (the first step takes a while)" * plan.compile
        print("training {} in {precision} on {device}:".format(recipe.method, **run.record.settings), end=" ")
        print(f"{len(sequences)} packed sequences, {plan.micro_batch} at a time in each of {processes} processes{how}")
        if recipe.max_steps < 1 and steps <= recipe.warmup_steps:
            print(f"only {steps} optimizer steps: for more, --batch-size 2 --max-length 512, or --num-train-epochs 3")
        before = signal.signal(signal.SIGINT, trainer.interrupt)
        try:
            quiet = not run.state.is_main_process
            with tqdm(total=steps, unit=" steps", disable=quiet) as trainer.bar, suppress(NothingLeft):
                trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
            return trainer
        except torch.OutOfMemoryError:
            if processes > 1 or plan is options[-1]:  # of several processes the others are in the middle of a step
                raise RunError("the GPU ran out of memory; lower max_length, or use --method qlora") from None
        finally:
            signal.signal(signal.SIGINT, before)
        # Not in the handler: there the error's trace still holds the tensors of the step that failed.
        print("that does not fit into memory; trying with less at a time", flush=True)
        run.before["train_seconds"] = run.before.get("train_seconds", 0) + trainer.marked - trainer.began
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
        if run.state.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # the record's peak is that of the plan beside it
        run.checkpoint = checkpoints.last(run.out)
        with torch.no_grad():
            for name, weight in learned.items():
                weight.copy_(fresh[name])
                weight.grad = None
    raise AssertionError("plans() gives at least one plan")


def finish(run: Run, trainer: Trainer) -> Record:
    """Save the adapter, the record and the picture and show the card; RunError if the run was stopped or diverged."""
    made, out, recipe, why = run.record, run.out, run.recipe, ""
    made.measures = card = trainer.measures()
    if trainer.diverged:
        made.status, why = "failed", f"training stopped because {trainer.diverged}; the checkpoint before is kept, "
        why += "lower learning_rate and start again in another --out"
    elif trainer.interrupted:
        made.status, why = "stopped", f"stopped at step {card['steps']}; a checkpoint is kept, --resume goes on from it"
    else:
        made.status = "finished"
        trainer.save_model(str(out / "adapter"))
        made.adapter = {"path": "adapter", "method": recipe.method, "digest": folder_digest(out / "adapter")}
    if run.state.is_main_process:
        write(made, out / "record.json")
        draw_losses(trainer.steps, out / "loss.png", f"{recipe.method} on {recipe.data}")  # last: the rest is kept
    if run.keeper:
        run.keeper.wait(min(LAST_UPLOAD, run.deadline - time.monotonic()))
    if why:
        raise RunError(why)
    told = f"{recipe.method}: loss {card['loss_first']:.3f} -> {card['loss_last']:.3f}, {card['steps']} steps"
    speed = f"{card['wall_seconds']:.0f} s, {card['tokens_per_s']:,.0f} tokens/s, {card['peak_memory_gb']:.1f} GB"
    print(f"\n{told}, {speed} at most; adapter in {out / 'adapter'}", flush=True)
    return made


def draw_losses(losses: list[dict[str, float]], path: Path, title: str) -> None:
    """The loss curve as a picture: each step, and the mean of the last ten."""
    from matplotlib.figure import Figure

    steps, values = [entry["step"] for entry in losses], [entry["loss"] for entry in losses]
    figure = Figure(figsize=(7, 3.5), dpi=120, layout="tight")
    axes = figure.subplots()
    axes.plot(steps, values, color="#c9b8d8", linewidth=1, label="each step")
    smooth = [mean(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
    axes.plot(steps, smooth, color="#6b3fa0", linewidth=2, label="mean of ten")
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
