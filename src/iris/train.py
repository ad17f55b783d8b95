"""Fit, stop on time, resume, save. `fit` is the main path; read it first.

A run's folder holds adapter/ (PEFT), record.json, loss.png and checkpoint-N/ folders. A checkpoint counts only once
its manifest is written, so that one cut in half by a kill is passed over.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from . import chat, checkpoints, data, distributed, hardware, model, push, record
from .errors import InputError, RunError
from .plan import Plan, plans
from .push import CheckpointPusher
from .recipe import Recipe, changes
from .trainer import Push, Trainer

LAST_UPLOAD = 600  # seconds that the end of a run waits for the last checkpoint to reach the Hub


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    strict: bool = False,
    benchmarks: Path | None = None,
    dataset: data.Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> record.Record:
    """Train the adapter that `recipe` describes into `out`; returns the run's record, which is also written there.

    `minutes` bounds the whole call; the learning rate has decayed to zero by then. `strict` makes a dropped or cut
    row an InputError. `benchmarks` is a folder of evaluation files whose questions must not be trained on.
    `dataset` is recipe.data, read already; `callbacks` watch the training (a sweep's pruning, say).

    Where a launcher started several processes (see distributed.py) each of them calls this and gets the record; the
    first writes the folder, which all must see."""
    began = time.monotonic()
    distributed.join()
    each = distributed.share(recipe.batch_size, distributed.size())
    if each % (recipe.micro_batch or 1):
        raise InputError(f"micro_batch={recipe.micro_batch} does not divide the {each} sequences of a step on each GPU")
    first = distributed.rank() == 0
    checkpoint = prepare_folder(out, recipe, resume) if first else None
    distributed.wait()
    if resume and not first:
        checkpoint = checkpoints.last(out)
    pusher = CheckpointPusher(recipe.push_checkpoints, out) if first and recipe.push_checkpoints else None
    source = model.resolve(recipe.model)
    tokenizer = chat.load_tokenizer(source.path, source.hub_revision)
    if dataset is None:
        questions = data.benchmark_ngrams(benchmarks) if benchmarks else None
        dataset = data.load(recipe.data, recipe.rows, recipe.seed, questions)
    rows = encode_rows(dataset, tokenizer, recipe.max_length)
    show_data(dataset, rows, tokenizer)
    if strict and (dataset.dropped or dataset.cut):
        raise InputError(f"--strict: {dict(dataset.dropped | dataset.cut)}; mend these rows or train without --strict")
    items = [chat.packed_item([rows[index] for index in indices]) for indices in chat.pack(rows, recipe.max_length)]

    precision = hardware.precision(recipe.precision)
    set_seed(recipe.seed)
    adapted = model.load(source, recipe, precision)
    result = record.Record(
        kind="training",
        name=out.name,
        model=source.as_dict(),
        adapter={"path": "adapter", "method": recipe.method},
        recipe=recipe.as_dict(),
        data=dataset.as_dict() | {"tokens": sum(len(row.input_ids) for row in rows), "sequences": len(items)},
        settings={
            "precision": precision,
            "device": hardware.device_name(),
            "processes": distributed.size(),
            "minutes": minutes,
            "template_date": chat.TEMPLATE_DATE,
        },
    )
    if first:
        record.write(result, out / "record.json")
    watches = [*callbacks, *([Push(pusher)] if pusher else [])]
    try:
        trainer = train(adapted, tokenizer, items, recipe, out, precision, checkpoint, began, minutes, watches, result)
        finish(trainer, result, out, time.monotonic() - began)
    finally:
        if pusher:
            pusher.wait(LAST_UPLOAD if minutes is None else max(1.0, began + minutes * 60 - time.monotonic()))
    distributed.leave()
    return result


def prepare_folder(out: Path, recipe: Recipe, resume: bool) -> Path | None:
    """Make the run's folder; with `resume` return the checkpoint to go on from. InputError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        record.write_atomic(out / ".writable", b"")
        (out / ".writable").unlink()
    except OSError as error:
        raise InputError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None
    earlier = out / "record.json"
    if resume and recipe.push_checkpoints and not earlier.exists():
        push.fetch_last(recipe.push_checkpoints, out)
    if not resume:
        if earlier.exists() or list(out.glob("checkpoint-*")):
            raise InputError(f"{out} holds a run already; add --resume to go on with it, or choose another --out")
        return None
    if not earlier.exists():
        raise InputError(f"there is no run in {out} to resume; run without --resume")
    before = record.read(earlier).recipe or {}
    if changed := changes(recipe, before):
        told = ", ".join(f"{key} was {before.get(key)}" for key in changed)
        raise InputError(
            f"the run in {out} has another recipe ({told}); resume it with the same, or choose another --out"
        )
    checkpoint = checkpoints.last(out)
    if checkpoint is None:
        raise InputError(f"the run in {out} was stopped before its first checkpoint; delete {out} and start again")
    print(f"resuming from {checkpoint.name}", flush=True)
    return checkpoint


def encode_rows(dataset: data.Dataset, tokenizer: Any, max_length: int) -> list[chat.Encoded]:
    """The data set's rows as token ids and labels within `max_length`; counts in `dataset` what is cut or dropped."""
    from tqdm import tqdm

    kept, rows = [], []
    quiet = len(dataset.rows) < 2000 or distributed.rank() > 0
    for messages in tqdm(dataset.rows, desc="tokenizing", unit=" rows", disable=quiet):
        encoded, reason = chat.fit(chat.encode(tokenizer, messages), max_length)
        if encoded is None:
            dataset.dropped[reason] += 1
            continue
        if reason:
            dataset.cut[reason] += 1
        kept.append(messages)
        rows.append(encoded)
    dataset.rows = kept
    if not rows:
        raise InputError(f"no row of {dataset.id} fits into max_length={max_length} tokens; raise it")
    return rows


def show_data(dataset: data.Dataset, rows: list[chat.Encoded], tokenizer: Any) -> None:
    """Print what was kept, dropped and cut, and the first row with what is learned in bold."""
    learned = sum(label != chat.IGNORED for row in rows for label in row.labels)
    total = sum(len(row.input_ids) for row in rows)
    print(
        f"{dataset.id}: {len(rows):,} of {dataset.read:,} rows, {total:,} tokens, {learned / total:.0%} of them learned"
    )
    for what, counts in (("dropped", dataset.dropped), ("shortened", dataset.cut)):
        for reason, count in Counter(counts).most_common():
            print(f"  {what} {count:,}: {reason}")
    print("the first row; what is learned is in bold:")
    print("  " + chat.preview(tokenizer, rows[0], ("\033[1m", "\033[0m")).replace("\n", "\n  "), flush=True)


def train(
    adapted: Any,
    tokenizer: Any,
    items: list[dict[str, Any]],
    recipe: Recipe,
    out: Path,
    precision: str,
    checkpoint: Path | None,
    began: float,
    minutes: float | None,
    callbacks: Sequence[TrainerCallback],
    result: record.Record,
) -> Trainer:
    """Train by the best plan that fits into memory; the plan goes into `result`."""
    steps = recipe.max_steps if recipe.max_steps > 0 else recipe.num_train_epochs * len(items) / recipe.batch_size
    base = adapted.get_base_model()
    options = plans(recipe, base.config, base.num_parameters(), steps * recipe.tokens_per_step)
    learned = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    fresh = {name: weight.detach().to("cpu", copy=True) for name, weight in learned.items()}
    for plan in options:
        result.settings["plan"] = plan.as_dict()
        if plan.sharded:
            distributed.shard(adapted)
        trainer = Trainer(adapted, tokenizer, items, recipe, plan, precision, out, began, minutes)
        for callback in callbacks:
            trainer.add_callback(callback)
        print(_announce(plan, recipe, precision, len(items)), flush=True)
        try:
            with trainer.stopping_gently():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return trainer
        except torch.OutOfMemoryError:
            together = distributed.size() > 1 and trainer.losses  # the other processes are in the middle of a step
            if together or plan.sharded or plan is options[-1]:
                raise RunError("the GPU ran out of memory; lower max_length, or use --method qlora") from None
        # Not in the handler: there the error's trace still holds the tensors of the step that failed.
        print("that does not fit into memory; trying with less at a time", flush=True)
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
        checkpoint = checkpoints.last(out)
        with torch.no_grad():
            for name, weight in learned.items():
                weight.copy_(fresh[name])
                weight.grad = None
    raise AssertionError("plans() gives at least one plan")


def _announce(plan: Plan, recipe: Recipe, precision: str, sequences: int) -> str:
    processes = distributed.size()
    parts = [f"{plan.micro_batch} of {recipe.batch_size // processes} packed sequences at a time"]
    parts += [f"in each of {processes} processes"] if processes > 1 else []
    parts += ["the base spread over them"] if plan.sharded else []
    parts += ["activations computed twice to save memory"] if plan.checkpointing else []
    parts += ["compiled (the first step takes a while)"] if plan.compile else []
    what = f"training {recipe.method} in {precision} on {hardware.device_name()}"
    return f"{what}: {sequences} sequences, {', '.join(parts)}"


def finish(trainer: Trainer, result: record.Record, out: Path, wall_seconds: float) -> None:
    """Save the adapter, the picture, the record and show the card; RunError if the run was stopped or diverged. Of
    several processes the first does."""
    result.measures = trainer.measures() | {
        "wall_seconds": round(wall_seconds, 2),
        "peak_memory_gb": max(peak for (peak,) in distributed.gather([hardware.peak_memory_gb()])),
    }
    if distributed.rank():
        return
    title = f"{trainer.recipe.method} on {trainer.recipe.data}"
    if trainer.diverged or trainer.interrupted:
        result.status = "failed" if trainer.diverged else "stopped"
        record.write(result, out / "record.json")
        draw_losses(trainer.losses, out / "loss.png", title)
        if trainer.diverged:
            raise RunError(
                f"training stopped because {trainer.diverged}; the last good checkpoint is kept, "
                "lower learning_rate and start again in another --out"
            )
        raise RunError(
            f"stopped at step {trainer.state.global_step}; a checkpoint is kept, "
            "add --resume to the same command to go on"
        )
    trainer.save_model(str(out / "adapter"))
    result.status = "finished"
    result.adapter = {
        "path": "adapter",
        "method": trainer.recipe.method,
        "digest": record.folder_digest(out / "adapter"),
    }
    record.write(result, out / "record.json")
    draw_losses(trainer.losses, out / "loss.png", title)  # last: whatever happens here, the adapter is kept
    card = result.measures
    print(
        f"\n{trainer.recipe.method}: loss {card['loss_first']:.3f} -> {card['loss_last']:.3f}, "
        f"{card['steps']} steps, {card['wall_seconds']:.0f} s, {card['tokens_per_s']:,.0f} tokens/s, "
        f"{card['peak_memory_gb']:.1f} GB at most; adapter in {out / 'adapter'}",
        flush=True,
    )


def draw_losses(losses: list[dict[str, float]], path: Path, title: str) -> None:
    """The loss curve as a picture: each step, and the mean of the last ten."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [entry["step"] for entry in losses]
    values = [entry["loss"] for entry in losses]
    smooth = [sum(values[max(0, i - 9) : i + 1]) / len(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
    figure, axes = plt.subplots(figsize=(7, 3.5), dpi=120)
    axes.plot(steps, values, color="#c9b8d8", linewidth=1, label="each step")
    axes.plot(steps, smooth, color="#6b3fa0", linewidth=2, label="mean of ten")
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
