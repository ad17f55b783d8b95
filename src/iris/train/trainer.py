"""trl's SFTTrainer on sequences packed beforehand: our loss and schedule, a clock, sealed checkpoints, gentle stops."""

import math
import shutil
import time
from collections import deque
from functools import partial
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm import tqdm
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from .. import record
from ..model import hardware
from . import checkpoints, lora, memory, packing

if TYPE_CHECKING:
    from .fit import Run

SAVING_SECONDS = 5  # kept back from a time budget for saving the adapter
JUDGED_STEPS = 5  # whose mean loss says whether a run diverges


class NothingLeft(Exception):
    """The checkpoint to resume from is the last one: there is nothing to train, only an adapter to save."""


class Arguments(SFTConfig):
    place_model_on_device = False  # it is where it belongs, or its parts are
    n_gpu = 1  # other GPUs belong to other processes, or to nobody: never nn.DataParallel


class Trainer(SFTTrainer):
    """Trains `sequences` (packing.packed_item) by the run's recipe and by `plan`. `interrupted` and `diverged` say why
    it ended early; the losses, tokens and seconds of all steps are in `state.log_history`, which checkpoints keep."""

    bar: tqdm  # of the steps

    def __init__(
        self, run: "Run", model: Any, tokenizer: Any, sequences: list[dict[str, Any]], plan: memory.Plan
    ) -> None:
        recipe, on_gpu = run.recipe, hardware.device() == "cuda"
        self.run, self.interrupted, self.diverged, self.step_tokens = run, False, "", 0
        self.seconds: deque[float] = deque(maxlen=10)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        arguments = Arguments(
            output_dir=str(run.out),
            per_device_train_batch_size=plan.micro_batch,
            gradient_accumulation_steps=recipe.batch_size // (plan.micro_batch * run.state.num_processes),
            gradient_checkpointing=plan.checkpointing,
            num_train_epochs=recipe.num_train_epochs,
            max_steps=recipe.max_steps,
            max_length=recipe.max_length,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
            save_steps=recipe.save_steps,
            report_to=recipe.report_to,
            optim=recipe.optim or ("adamw_torch_fused" if on_gpu else "adamw_torch"),
            bf16=False,  # base and activations are bf16 as they are; autocast would only add casts
            fp16=run.record.settings["precision"] == "fp16",  # for the loss scaling
            use_cpu=not on_gpu,
            save_total_limit=2,
            logging_steps=1,
            logging_nan_inf_filter=False,  # else a NaN would be logged as the mean of the losses before it
            disable_tqdm=True,  # its bar prints a line a step
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
            ddp_find_unused_parameters=False,
            loss_type="nll",  # ours is in the model; trl's own would take its head away
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        # The base is the same in every process as it is, or a shard: DDP must not send it around, which it can be told
        # by this name alone.
        frozen = [*model.named_parameters(), *model.named_buffers()]
        model._ddp_params_and_buffers_to_ignore = [name for name, tensor in frozen if not tensor.requires_grad]
        self.packed, collate = recipe.engine == "peft", packing.collate_padded
        if self.packed:
            fixed = packing.shape_of(sequences, plan.micro_batch, recipe.max_length) if on_gpu or plan.compile else None
            collate = partial(packing.collate, shape=fixed)
        super().__init__(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(sequences).with_format("numpy"),
            data_collator=partial(collate, pad_token_id=tokenizer.pad_token_id),
        )
        self.remove_callback(PrinterCallback)
        for parameter in learned:  # trl casts a QLoRA adapter to bf16; fp16's loss scaling takes no 16-bit gradients
            parameter.data = parameter.data.float()
        if plan.checkpointing:
            model.enable_input_require_grads()  # which transformers forgets for PEFT models (its issue 42489)
        if plan.compile and self.packed:
            lora.compile_layers(model)
        self.began = self.marked = time.monotonic()  # the run of steps, and the step in hand

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the learned tokens of the whole optimizer step, in nats; in each of several processes
        times their number, as DDP takes the mean of their gradients."""
        if self.state.global_step >= self.state.max_steps:  # transformers would train one step more
            raise NothingLeft
        self.step_tokens += inputs.pop("tokens")
        if not self.packed:  # Unsloth's own loss
            return model(**inputs, num_items_in_batch=num_items_in_batch).loss
        loss = model(**inputs, max_seqlen=self.run.recipe.max_length)
        return loss * self.run.state.num_processes / num_items_in_batch

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up, then linear, cosine or constant over the run; with a time budget the clock counts as well as the
        steps, whichever is further on."""
        run, warmup = self.run, self.run.recipe.warmup_steps

        def rate(step: int) -> float:
            if step < warmup:
                return step / warmup
            done = (step - warmup) / max(1, num_training_steps - warmup)
            if run.deadline < math.inf:
                done = max(done, *gather_object([self.spent()]))
            done = min(1.0, done)
            kinds = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
            return kinds[run.recipe.lr_scheduler_type]

        chosen: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, rate)
        return self.lr_scheduler

    def spent(self) -> float:
        """How much of the time budget is used, as a share; from 1 on there is none left for another step and saving."""
        run, now = self.run, time.monotonic()
        step = max([*self.seconds, now - self.marked])
        return (now + step - run.began) / (run.deadline - SAVING_SECONDS - run.began)

    @property
    def steps(self) -> list[dict[str, float]]:
        """step, loss, learning_rate, tokens and step_seconds of every step, those before a resumption included."""
        return [entry for entry in self.state.log_history if "loss" in entry]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What happens after each step: its tokens and seconds are logged, and training ends on Ctrl-C, on time, or
        when the loss diverges."""
        if "loss" not in logs:  # transformers' own sums, at the end
            return super().log(logs, start_time)
        run = self.run
        self.seconds.append(time.monotonic() - self.marked)
        mine = (self.step_tokens, self.interrupted, self.spent() >= 1)
        tokens, interrupted, late = zip(*gather_object([mine]), strict=True)
        self.interrupted, self.step_tokens = any(interrupted), 0
        super().log(logs | {"tokens": sum(tokens), "step_seconds": self.seconds[-1]}, start_time)
        losses = [step["loss"] for step in self.steps]
        self.bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        self.bar.update(self.state.global_step - self.bar.n)
        self.marked = time.monotonic()
        if not run.record.measures:  # the first step is done: from here on there is a run in the folder
            run.record.measures = self.measures()
            if run.state.is_main_process:
                record.write(run.record, run.out / "record.json")
        self.control.should_save |= self.interrupted
        self.control.should_training_stop |= self.interrupted or any(late)
        first, last = mean(losses[:JUDGED_STEPS]), mean(losses[-JUDGED_STEPS:])
        judged = len(losses) >= max(run.recipe.warmup_steps, JUDGED_STEPS) + JUDGED_STEPS
        model: Any = self.model
        worse_than_a_guess = last > max(3 * first, math.log(model.config.vocab_size))
        if not math.isfinite(losses[-1]) or (judged and worse_than_a_guess):
            self.diverged = f"the loss went from {first:.2f} to {last:.2f} at step {self.state.global_step}"
            self.control.should_training_stop, self.control.should_save = True, False

    def measures(self) -> dict[str, Any]:
        """Tokens (padding not counted), speeds and losses of the whole run. `tokens_per_s` counts everything from the
        first step on; `steady_tokens_per_s` is the median step's, without compilation and saving."""
        before, steps = self.run.before, self.steps
        tokens = sum(step["tokens"] for step in steps)
        seconds = before.get("train_seconds", 0) + self.marked - self.began
        losses = [round(step["loss"], 5) if math.isfinite(step["loss"]) else None for step in steps]
        return {
            "steps": len(steps),
            "tokens": tokens,
            "train_seconds": round(seconds, 2),
            "tokens_per_s": round(tokens / max(seconds, 0.01), 1),
            "steady_tokens_per_s": round(median(step["tokens"] / step["step_seconds"] for step in steps), 1),
            "step_seconds": round(median(step["step_seconds"] for step in steps), 4),
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "losses": losses,
            "wall_seconds": round(before.get("wall_seconds", 0) + time.monotonic() - self.run.began, 2),
            "peak_memory_gb": max(before.get("peak_memory_gb", 0.0), *gather_object([record.peak_memory_gb()])),
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save and seal; a failed save (a full disk, say) is told, and training goes on. There is no hook round it."""
        folder = self.run.out / f"checkpoint-{self.state.global_step}"
        self.run.record.measures = self.measures()
        try:
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.accelerator.wait_for_everyone()  # every process saves the state of its random numbers
            if self.run.state.is_main_process:
                record.write(self.run.record, self.run.out / "record.json")
                checkpoints.seal(folder)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            print(f"\ncould not save {folder.name} ({error}); training goes on", flush=True)
        self.marked = time.monotonic()

    def interrupt(self, *_: Any) -> None:
        """The first Ctrl-C ends training after the step in hand, with a checkpoint; the second ends it at once."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nstopping after this step; a checkpoint will be kept", flush=True)
