"""trl's SFTTrainer on packed sequences made beforehand: fused loss, our schedule, sealed checkpoints, gentle stops."""

from __future__ import annotations

import json
import math
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from . import chat, checkpoints, distributed, fast, hardware, record
from .loss import linear_cross_entropy
from .plan import Plan
from .push import CheckpointPusher
from .recipe import Recipe

SAVING_SECONDS = 5  # kept back from a time budget for saving the adapter


class Trainer(SFTTrainer):
    """Trains `items` (see chat.packed_item) by `recipe` and `plan`. `losses` holds one {"step", "loss", "lr"} a step;
    `interrupted` and `diverged` say why a run ended early."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        items: list[dict[str, Any]],
        recipe: Recipe,
        plan: Plan,
        precision: str,
        out: Path,
        began: float,
        minutes: float | None,
    ) -> None:
        self.recipe, self.out, self.began, self.minutes = recipe, out, began, minutes
        self.interrupted, self.diverged = False, ""
        self.losses: list[dict[str, float]] = []
        self.tokens_seen, self.train_seconds = 0, 0.0
        self.step_tokens: list[int] = []
        self.step_seconds: list[float] = []
        self.packed, self.sequences = recipe.engine == "peft", len(items)
        self.plan, self.processes, self.out_of_memory = plan, distributed.size(), False
        on_gpu, several = hardware.device() == "cuda", self.processes > 1
        config = SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=plan.micro_batch,
            gradient_accumulation_steps=recipe.batch_size // (plan.micro_batch * self.processes),
            gradient_checkpointing=plan.checkpointing,
            num_train_epochs=recipe.num_train_epochs,
            max_steps=recipe.max_steps,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            optim=recipe.optim if on_gpu else "adamw_torch",
            seed=recipe.seed,
            bf16=False,  # base and activations are bf16 as they are; autocast would only add casts
            fp16=precision == "fp16",  # for the loss scaling
            use_cpu=not on_gpu,
            save_steps=recipe.save_steps,
            save_total_limit=2,
            logging_steps=1,
            logging_nan_inf_filter=False,  # else a NaN would be logged as the mean of the losses before it
            report_to=recipe.report_to,
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
            max_length=recipe.max_length,
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=False,
        )
        config._n_gpu = 1  # other GPUs belong to other processes, or to nobody: never nn.DataParallel
        super().__init__(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([*items, chat.nothing(tokenizer.pad_token_id)][: len(items) + several]),
            data_collator=self._collator(items, plan, tokenizer.pad_token_id),
            callbacks=[Watch(self)],
        )
        for parameter in model.parameters():
            if parameter.requires_grad:  # trl casts a QLoRA adapter to bf16, which fp16's loss scaling cannot take
                parameter.data = parameter.data.float()
        # accelerate would wrap it in DistributedDataParallel, whose forward ours goes around; see training_step
        model._is_accelerate_prepared = several
        self.remove_callback(ProgressCallback)
        self.add_callback(Bar())
        if plan.compile and self.packed:
            fast.compile_layers(model)

    def _collator(self, items: list[dict[str, Any]], plan: Plan, pad: int) -> Any:
        if not self.packed:
            return lambda batch: chat.collate_padded(batch, pad)
        if hardware.device() == "cpu" and not plan.compile:
            return lambda batch: chat.collate(batch, pad)
        shape = chat.shape_of(items, plan.micro_batch, self.recipe.max_length)
        return lambda batch: chat.collate(batch, pad, shape)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """A sharded model is where it belongs, and cannot be moved."""
        if not self.plan.sharded:
            super()._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of one process, its last step filled up so that every process has the same number of batches."""
        if self.processes == 1:
            return super()._get_train_sampler(train_dataset)
        return EvenSampler(self.sequences, self.recipe.batch_size, lambda: self.state.global_step)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """Forward and backward of a micro-batch. With a step's last one the gradients of all processes are added up:
        as compute_loss divides by the tokens of all of them, the sum is the gradient that one process would have."""
        if self.processes == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = torch.zeros((), device=self.args.device)
        try:
            if not self.out_of_memory:
                loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError:
            if self.losses or self.plan.sharded:
                raise  # which ends the other processes as well
            self.out_of_memory = True
        if self.accelerator.sync_gradients:
            # no process may wait for the gradients of one that goes on to the next plan
            if not self.losses and any(short for (short,) in distributed.gather([float(self.out_of_memory)])):
                raise torch.OutOfMemoryError
            distributed.add_up([weight.grad for weight in model.parameters() if weight.requires_grad])
        return loss * self.processes  # of which the mean over the processes is logged

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the learned tokens of the whole optimizer step, in nats."""
        labels = inputs.pop("labels")
        self.tokens_seen += inputs.pop("tokens")
        if not self.packed:  # Unsloth's own loss shifts the labels itself
            labels = torch.nn.functional.pad(labels, (1, 0), value=chat.IGNORED)[:, :-1]
            return model(**inputs, labels=labels, num_items_in_batch=num_items_in_batch).loss
        llama = model.get_base_model()
        # a ready-made mask keeps transformers from building one; packed attention reads none
        ready = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=labels.device)
        hidden = llama.model(
            **inputs, attention_mask=ready, max_seqlen=self.recipe.max_length, use_cache=False
        ).last_hidden_state
        head = llama.lm_head.weight
        if isinstance(head, DTensor):
            head = head.full_tensor()  # sharded; gathered for the loss, which computes its gradient at once
        return linear_cross_entropy(hidden[0], head, labels[0]) / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the loss of every step for the record and the picture."""
        if "loss" in logs:
            self.losses.append({"step": self.state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]})
        super(SFTTrainer, self).log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up, then linear, cosine or constant over the run; with a time budget the clock counts as well as the
        steps, whichever is further on."""
        warmup, budget = self.recipe.warmup_steps, (self.minutes or math.inf) * 60 - SAVING_SECONDS

        def rate(step: int) -> float:
            if step < warmup:
                return step / warmup
            spent = self.elapsed() / budget if self.minutes else 0.0
            done = min(1.0, max((step - warmup) / max(1, num_training_steps - warmup), spent))
            return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[
                self.recipe.lr_scheduler_type
            ]

        optimizer = optimizer or self.optimizer
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return self.lr_scheduler

    def elapsed(self) -> float:
        """Seconds since the command began; the same in all processes, which must ask for it together."""
        return max(seconds for (seconds,) in distributed.gather([time.monotonic() - self.began]))

    def measures(self) -> dict[str, Any]:
        """Tokens (padding not counted), speeds and losses of the run. `tokens_per_s` counts everything from the first
        step on; `steady_tokens_per_s` is the median step's, without compilation and saving."""
        steady = [tokens / seconds for tokens, seconds in zip(self.step_tokens, self.step_seconds, strict=True)]
        return {
            "steps": self.state.global_step,
            "tokens": self.tokens_seen,
            "train_seconds": round(self.train_seconds, 2),
            "tokens_per_s": round(self.tokens_seen / self.train_seconds, 1),
            "steady_tokens_per_s": round(statistics.median(steady), 1) if steady else None,
            "step_seconds": round(statistics.median(self.step_seconds), 4) if steady else None,
            "loss_first": self.losses[0]["loss"] if self.losses else None,
            "loss_last": self.losses[-1]["loss"] if self.losses else None,
            "losses": [round(entry["loss"], 5) for entry in self.losses],
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save and seal; a failed save (a full disk, say) is told, and training goes on."""
        folder = self.out / f"checkpoint-{self.state.global_step}"
        try:
            super(SFTTrainer, self)._save_checkpoint(model, trial)
            if self.args.should_save:
                record.write_atomic(folder / "losses.json", json.dumps(self.losses).encode())
                checkpoints.seal(folder)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            print(f"\ncould not save {folder.name} ({error}); training goes on", flush=True)

    def _save_rng_state(self, output_dir: str) -> None:
        """Only of a process on its own: another number of them may go on, and only dropout would draw from it."""
        if self.processes == 1:
            super()._save_rng_state(output_dir)

    @contextmanager
    def stopping_gently(self) -> Iterator[None]:
        """While this lasts, the first Ctrl-C ends training after the step in hand, with a checkpoint."""

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


class EvenSampler(Sampler[int]):
    """The numbers 0 to count - 1 in accelerate's seeded order of the epoch, then `count` itself until the last step is
    full. The epoch follows from the steps `done`: accelerate tells it to no sampler behind a resumed, shared loader."""

    def __init__(self, count: int, batch_size: int, done: Callable[[], int]) -> None:
        self.seeded, self.padding = SeedableRandomSampler(range(count)), [count] * (-count % batch_size)
        self.steps, self.done = -(-count // batch_size), done

    def __iter__(self) -> Iterator[int]:
        self.seeded.set_epoch(self.done() // self.steps)
        yield from self.seeded
        yield from self.padding

    def __len__(self) -> int:
        return len(self.seeded) + len(self.padding)


class Bar(ProgressCallback):
    """The progress bar with the loss at its end, instead of a line a step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class Watch(TrainerCallback):
    """Times the steps; ends training on Ctrl-C, on time, or when the loss diverges."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            saved = self.trainer.out / f"checkpoint-{state.global_step}" / "losses.json"
            self.trainer.losses = json.loads(saved.read_text())
        self.train_began = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began, self.tokens_before = time.monotonic(), self.trainer.tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        trainer.step_seconds.append(time.monotonic() - self.step_began)
        longest = max(trainer.step_seconds[-10:])
        late = bool(trainer.minutes and trainer.elapsed() + longest + SAVING_SECONDS > trainer.minutes * 60)
        told = distributed.gather([trainer.tokens_seen - self.tokens_before, trainer.interrupted, late])
        trainer.step_tokens.append(int(sum(tokens for tokens, _, _ in told)))
        trainer.tokens_seen = self.tokens_before + trainer.step_tokens[-1]
        trainer.interrupted = any(interrupted for _, interrupted, _ in told)
        if trainer.interrupted:
            control.should_training_stop = control.should_save = True
        elif any(late for _, _, late in told):
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            start = self.trainer.losses[0]["loss"]
            if not math.isfinite(logs["loss"]) or logs["loss"] > 10 * start:
                self.trainer.diverged = (
                    f"the loss went from {start:.2f} to {logs['loss']:.2f} at step {state.global_step}"
                )
                control.should_training_stop, control.should_save = True, False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.train_seconds = time.monotonic() - self.train_began


class Push(TrainerCallback):
    """Sends every sealed checkpoint to the Hub while training goes on."""

    def __init__(self, pusher: CheckpointPusher) -> None:
        self.pusher = pusher

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = self.pusher.out / f"checkpoint-{state.global_step}"
        if folder.exists():  # else it could not be saved, which was told
            self.pusher.push(folder)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pusher.poll()
