"""Fit, stop on time, resume, save. `fit` is the main path; read it first.

A run's folder holds adapter/ (PEFT), record.json, loss.png and checkpoint-N/ folders. A checkpoint counts only once
its manifest is written, so that one cut in half by a kill is passed over.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from . import chat, data, hardware, model, record
from .errors import InputError, RunError
from .loss import linear_cross_entropy
from .recipe import Recipe, changes

MANIFEST = "complete.json"  # file sizes and digests of a checkpoint, written last


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    strict: bool = False,
    benchmarks: Path | None = None,
) -> record.Record:
    """Train the adapter that `recipe` describes into `out`; returns the run's record, which is also written there.

    `minutes` bounds the whole call; the learning rate has decayed to zero by then. `strict` makes a dropped or cut
    row an InputError. `benchmarks` is a folder of evaluation files whose questions must not be trained on."""
    began = time.monotonic()
    checkpoint = prepare_folder(out, recipe, resume)
    source = model.resolve(recipe.model)
    tokenizer = chat.load_tokenizer(source.path, source.revision if source.path == source.id else None)
    dataset = data.load(recipe.data, recipe.rows, recipe.seed, data.benchmark_ngrams(benchmarks) if benchmarks else None)
    rows = encode_rows(dataset, tokenizer, recipe.max_length)
    show_data(dataset, rows, tokenizer)
    if strict and (dataset.dropped or dataset.cut):
        raise InputError(f"--strict: {dict(dataset.dropped | dataset.cut)}; mend these rows or train without --strict")

    precision = hardware.precision(recipe.precision)
    set_seed(recipe.seed)
    base = model.load_base(source, recipe, precision)
    peft_model = model.add_adapter(base, recipe)
    items = [
        chat.packed_item([rows[index] for index in indices]) for indices in chat.pack(rows, recipe.max_length)
    ]
    micro = micro_batch(recipe)
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
            "micro_batch": micro,
            "minutes": minutes,
            "template_date": chat.TEMPLATE_DATE,
        },
    )
    record.write(result, out / "record.json")
    trainer = Trainer(peft_model, tokenizer, items, recipe, out, precision, micro, began, minutes)
    print(
        f"training {recipe.method} on {hardware.device_name()} in {precision}: {len(rows)} rows, "
        f"{result.data['tokens']:,} tokens in {len(items)} packed sequences, "  # type: ignore[index]
        f"{micro} x {trainer.args.gradient_accumulation_steps} sequences a step",
        flush=True,
    )
    with trainer.stopping_gently():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer, result, out, time.monotonic() - began)
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
    if not resume:
        if earlier.exists() or list(out.glob("checkpoint-*")):
            raise InputError(f"{out} holds a run already; add --resume to go on with it, or choose another --out")
        return None
    if not earlier.exists():
        raise InputError(f"there is no run in {out} to resume; run without --resume")
    before = record.read(earlier).recipe or {}
    if changed := changes(recipe, before):
        told = ", ".join(f"{key} was {before.get(key)}" for key in changed)
        raise InputError(f"the run in {out} has another recipe ({told}); resume it with the same, or choose another --out")
    checkpoint = last_checkpoint(out)
    if checkpoint is None:
        raise InputError(f"the run in {out} was stopped before its first checkpoint; delete {out} and start again")
    print(f"resuming from {checkpoint.name}", flush=True)
    return checkpoint


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run; says which ones it passes over."""
    for folder in sorted(out.glob("checkpoint-*"), key=lambda path: -int(path.name.rsplit("-", 1)[1])):
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if all(record.file_digest(folder / name) == digest for name, digest in manifest.items()):
                return folder
        except (OSError, ValueError):
            pass
        print(f"{folder.name} is incomplete, as it was being written when the run ended; passing over it", flush=True)
        shutil.rmtree(folder)
    return None


def encode_rows(dataset: data.Dataset, tokenizer: Any, max_length: int) -> list[chat.Encoded]:
    """The data set's rows as token ids and labels within `max_length`; counts in `dataset` what is cut or dropped."""
    from tqdm import tqdm

    kept, rows = [], []
    for messages in tqdm(dataset.rows, desc="tokenizing", unit=" rows", disable=len(dataset.rows) < 2000):
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
    print(f"{dataset.id}: {len(rows):,} of {dataset.read:,} rows, {total:,} tokens, {learned / total:.0%} of them learned")
    for what, counts in (("dropped", dataset.dropped), ("shortened", dataset.cut)):
        for reason, count in Counter(counts).most_common():
            print(f"  {what} {count:,}: {reason}")
    print("the first row; what is learned is in bold:")
    print("  " + chat.preview(tokenizer, rows[0], ("\033[1m", "\033[0m")).replace("\n", "\n  "), flush=True)


def micro_batch(recipe: Recipe) -> int:
    """Packed sequences of one forward pass; divides the batch, so that the optimizer's steps stay the same."""
    return 1 if hardware.device() == "cpu" else recipe.batch_size


class Trainer(SFTTrainer):
    """trl's trainer on packed sequences made beforehand: fused loss, our schedule, checkpoints with a manifest."""

    def __init__(
        self,
        peft_model: Any,
        tokenizer: Any,
        items: list[dict[str, list[int]]],
        recipe: Recipe,
        out: Path,
        precision: str,
        micro: int,
        began: float,
        minutes: float | None,
    ) -> None:
        from datasets import Dataset

        on_gpu = hardware.device() == "cuda"
        self.recipe, self.out, self.began, self.minutes = recipe, out, began, minutes
        self.tokens_seen, self.interrupted, self.diverged = 0, False, ""
        self.losses: list[dict[str, float]] = []
        config = SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=math.ceil(recipe.batch_size / micro),
            num_train_epochs=recipe.num_train_epochs,
            max_steps=recipe.max_steps,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            optim="adamw_8bit" if on_gpu else "adamw_torch",
            seed=recipe.seed,
            bf16=False,  # base and activations are bf16 as they are; autocast would only add casts
            fp16=precision == "fp16",
            use_cpu=not on_gpu,
            save_steps=recipe.save_steps,
            save_total_limit=2,
            logging_steps=1,
            report_to=recipe.report_to,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
            max_length=recipe.max_length,
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=False,
        )
        super().__init__(
            model=peft_model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(items),
            data_collator=lambda batch: chat.collate(batch, tokenizer.pad_token_id),
            callbacks=[Watch(self)],
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the learned tokens of the whole optimizer step, in nats."""
        labels = inputs.pop("labels")
        llama = model.get_base_model()
        self.tokens_seen += labels.numel()
        hidden = llama.model(**inputs, use_cache=False).last_hidden_state
        total = linear_cross_entropy(hidden[0], llama.lm_head.weight, labels[0])
        return total / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the loss of every step for the record and the picture."""
        if "loss" in logs:
            self.losses.append({"step": self.state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]})
        super(SFTTrainer, self).log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up, then linear, cosine or constant over the run; with a time budget the clock counts as well as the
        steps, whichever is further on."""
        warmup, budget = self.recipe.warmup_steps, (self.minutes or math.inf) * 60

        def rate(step: int) -> float:
            if step < warmup:
                return step / warmup
            done = max((step - warmup) / max(1, num_training_steps - warmup), self.elapsed() / budget)
            shape = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * min(1.0, done))) / 2, "constant": 1.0}
            return max(0.0, shape[self.recipe.lr_scheduler_type])

        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
        return self.lr_scheduler

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self.began

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, then write the manifest; a failed save (a full disk, say) is told and training goes on."""
        folder = self.out / f"checkpoint-{self.state.global_step}"
        try:
            super(SFTTrainer, self)._save_checkpoint(model, trial)
            record.write_atomic(folder / "losses.json", json.dumps(self.losses).encode())
            files = sorted(path for path in folder.iterdir() if path.is_file())
            manifest = {path.name: record.file_digest(path) for path in files}
            record.write_atomic(folder / MANIFEST, json.dumps(manifest).encode())
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            print(f"\ncould not save {folder.name} ({error.strerror}); training goes on", flush=True)

    def stopping_gently(self) -> Any:
        """While this lasts, the first Ctrl-C ends training after the step in hand, with a checkpoint."""
        from contextlib import contextmanager

        @contextmanager
        def guard() -> Any:
            def on_interrupt(*_: Any) -> None:
                if self.interrupted:
                    raise KeyboardInterrupt
                self.interrupted = True
                print("\nstopping after this step; a checkpoint will be kept", flush=True)

            before = signal.signal(signal.SIGINT, on_interrupt)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, before)

        return guard()


class Watch(TrainerCallback):
    """Ends training on Ctrl-C, on time, or when the loss diverges."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.step_began = time.monotonic()
        self.longest = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        self.longest = max(self.longest, time.monotonic() - self.step_began)
        out_of_time = trainer.minutes and trainer.elapsed() + 2 * self.longest + 5 > trainer.minutes * 60
        if trainer.interrupted:
            control.should_training_stop = control.should_save = True
        elif out_of_time:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            start = self.trainer.losses[0]["loss"]
            if not math.isfinite(logs["loss"]) or logs["loss"] > 10 * start:
                self.trainer.diverged = f"the loss went from {start:.2f} to {logs['loss']:.2f} at step {state.global_step}"
                control.should_training_stop, control.should_save = True, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            saved = self.trainer.out / f"checkpoint-{state.global_step}" / "losses.json"
            self.trainer.losses = json.loads(saved.read_text())
        self.train_began = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.train_seconds = time.monotonic() - self.train_began


def finish(trainer: Trainer, result: record.Record, out: Path, wall_seconds: float) -> None:
    """Save the adapter, the picture and the record; RunError if the run was stopped or diverged."""
    seconds = trainer.train_seconds
    result.measures = {
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens_seen,
        "train_seconds": round(seconds, 2),
        "wall_seconds": round(wall_seconds, 2),
        "tokens_per_s": round(trainer.tokens_seen / seconds, 1),
        "peak_memory_gb": hardware.peak_memory_gb(),
        "loss_first": trainer.losses[0]["loss"],
        "loss_last": trainer.losses[-1]["loss"],
        "losses": [round(entry["loss"], 5) for entry in trainer.losses],
    }
    draw_losses(trainer.losses, out / "loss.png", f"{trainer.recipe.method} on {trainer.recipe.data}")
    if trainer.diverged or trainer.interrupted:
        result.status = "failed" if trainer.diverged else "stopped"
        record.write(result, out / "record.json")
        if trainer.diverged:
            raise RunError(
                f"training stopped because {trainer.diverged}; the last good checkpoint is kept, "
                "lower learning_rate and start again"
            )
        raise RunError(
            f"stopped at step {trainer.state.global_step}; a checkpoint is kept, "
            "add --resume to the same command to go on"
        )
    trainer.model.save_pretrained(out / "adapter")
    trainer.processing_class.save_pretrained(out / "adapter")
    result.status = "finished"
    result.adapter = {"path": "adapter", "method": trainer.recipe.method, "digest": record.folder_digest(out / "adapter")}
    record.write(result, out / "record.json")


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
