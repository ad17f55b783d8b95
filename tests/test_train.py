"""Training for real, on a tiny model: what is written, how it stops, and that a kill at any moment loses nothing."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from small_llama import make_model

from iris import InputError, RunError, recipe, record
from iris.model import hardware, load
from iris.train import checkpoints, fit, memory
from iris.train.memory import Plan
from iris.train.trainer import Trainer

STEPS = 16
SETTINGS = ["precision=fp32", "max_length=256", "batch_size=2", "save_steps=4", "learning_rate=5e-3", "rows=120"]


def make(model, steps=STEPS, settings=(), **given):
    return recipe.make([*SETTINGS, *settings], model=str(model), max_steps=steps, **given)


def train_until(model, out, step):
    """`iris train` in a process of its own, once it has written the checkpoint of that step."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["train", "--model", str(model), "--out", str(out), "--max-steps", str(STEPS), *settings]
    process = subprocess.Popen([sys.executable, "-m", "iris", *words], stderr=subprocess.PIPE, text=True)
    begun, awaited = time.monotonic(), out / f"checkpoint-{step}" / checkpoints.MANIFEST
    while not awaited.exists():
        assert process.poll() is None and time.monotonic() - begun < 240, f"{awaited} did not appear"
        time.sleep(0.002)
    return process


def weights(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


def difference(one, two):
    """The largest of any weight of two runs; 0.0 if they are the same bit for bit."""
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    return max(float((second[name] - tensor).abs().max()) for name, tensor in first.items())


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, fit.fit(make(small_model), out)


def test_a_run_writes_all_it_should(finished):
    out, made = finished
    assert {"adapter", "record.json", "loss.png"} <= {path.name for path in out.iterdir()}
    again = record.read(out / "record.json")
    assert again == made and again.status == "finished"
    assert again.measures["steps"] == STEPS == len(again.measures["losses"])
    assert again.measures["loss_last"] < again.measures["loss_first"]
    assert again.data["rows"] > again.data["planned"] > 60
    assert again.settings["precision"] == "fp32" and again.settings["processes"] == 1
    tensors = weights(out)
    assert len(tensors) == 7 * 2  # linear layers x (A, B)
    assert all(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_a_run_of_few_steps_says_how_to_get_more(small_model, tmp_path, capsys):
    made = fit.fit(make(small_model, -1, ["rows=4", "batch_size=8", "num_train_epochs=1"]), tmp_path / "few")
    assert made.measures["steps"] == 1 and "only 1 optimizer steps: for more, --batch-size 2" in capsys.readouterr().out


def test_methods_see_the_same_data_and_start_from_the_same_adapter(small_model, tmp_path, finished):
    _, lora = finished
    dora = fit.fit(make(small_model, method="dora", settings=["target_modules=all-linear"]), tmp_path / "dora")
    assert dora.data == lora.data
    assert {key for key, value in dora.recipe.items() if value != lora.recipe[key]} == {"method", "target_modules"}
    assert len(weights(tmp_path / "dora")) == 7 * 3  # all-linear names the same layers; and the magnitudes
    assert dora.measures["tokens"] == lora.measures["tokens"]
    assert abs(dora.measures["loss_first"] - lora.measures["loss_first"]) < 1e-4  # B is zero: both are the base


def test_killed_and_resumed_is_bit_identical(small_model, tmp_path, finished, monkeypatch, capsys):
    """SIGKILL after the second checkpoint was written, whose end is then cut off."""
    whole, made = finished
    out = tmp_path / "killed"
    process = train_until(small_model, out, 8)
    process.kill()
    process.wait()
    assert not (out / "adapter").exists()
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    os.truncate(newest / "adapter_model.safetensors", 1000)  # as if the kill had come while it was written
    steps, loss = [], Trainer.compute_loss

    def counted(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "compute_loss", counted)
    resumed = fit.fit(make(small_model), out, resume=True)
    said, before = capsys.readouterr().out, int(newest.name.split("-")[1]) - 4
    assert f"{newest.name} is incomplete" in said and f"resuming from checkpoint-{before}" in said
    assert min(steps) == before  # from the beginning it would come to the same weights
    assert difference(whole, out) == 0
    for name in ("steps", "tokens", "losses"):  # of the whole run
        assert resumed.measures[name] == made.measures[name]
    assert resumed.data == made.data and resumed.model == made.model


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(small_model, tmp_path, finished):
    whole, made = finished
    out = tmp_path / "interrupted"
    process = train_until(small_model, out, 4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "--resume" in errors and "Traceback" not in errors
    stopped = record.read(out / "record.json")
    assert stopped.status == "stopped" and checkpoints.last(out) is not None
    resumed = fit.fit(make(small_model), out, resume=True)
    assert difference(whole, out) == 0 and resumed.started == stopped.started
    assert resumed.measures["tokens"] == made.measures["tokens"]
    assert resumed.measures["train_seconds"] > stopped.measures["train_seconds"]
    assert resumed.measures["wall_seconds"] > stopped.measures["wall_seconds"]


def test_a_budget_of_minutes_is_kept_and_the_rate_decays(small_model, tmp_path):
    begun, out = time.monotonic(), tmp_path / "short"
    made = fit.fit(make(small_model, steps=100000), out, minutes=0.2)
    assert time.monotonic() - begun < 0.2 * 60
    assert made.status == "finished" and made.measures["steps"] < 100000
    state = json.loads((checkpoints.last(out) / "trainer_state.json").read_text())
    assert state["log_history"][-1]["learning_rate"] < 0.1 * 5e-3


def test_a_diverging_run_stops_with_a_sentence(small_model, tmp_path):
    with pytest.raises(RunError, match="the loss went from .* lower learning_rate"):
        fit.fit(make(small_model, steps=200, settings=["learning_rate=1e6", "max_grad_norm=1e6"]), tmp_path / "wild")
    failed = record.read(tmp_path / "wild" / "record.json")
    assert failed.status == "failed" and "NaN" not in (tmp_path / "wild" / "record.json").read_text()


@pytest.mark.parametrize(
    ("losses", "ends_at"),
    [
        ([0.46, 5.65, 0.5, 6.0, 5.0, *[5.5] * 10], None),  # easy rows first, then hard ones: below a guess
        ([2.5] * 10 + [20.0] + [2.4] * 10, None),  # one bad batch
        ([2.5] * 10 + [8.0] * 10, 15),  # worse than a guess over all tokens, and for good
        ([7.0] * 15, None),  # random weights know nothing yet
        ([2.5, 2.5, math.nan], 3),
    ],
)
def test_divergence_is_judged_over_several_steps_after_the_warm_up(small_model, tmp_path, monkeypatch, losses, ends_at):
    """The losses as they are logged; a guess over 1,000 tokens costs 6.9 nats."""
    given, log = iter(losses), Trainer.log

    def pretend(self, logs, start_time=None):
        log(self, logs | ({"loss": next(given)} if "loss" in logs else {}), start_time)

    monkeypatch.setattr(Trainer, "log", pretend)
    asked = make(small_model, len(losses), ["batch_size=1", "max_length=64", "learning_rate=1e-5", "save_steps=100"])
    if ends_at is None:
        assert fit.fit(asked, tmp_path / "run").measures["steps"] == len(losses)
        return
    with pytest.raises(RunError, match=f"the loss went .* at step {ends_at};"):
        fit.fit(asked, tmp_path / "run")


def test_a_failed_save_does_not_end_the_training(small_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "seal", Mock(side_effect=OSError(28, "No space left on device")))
    made = fit.fit(make(small_model, steps=5), tmp_path / "full")
    assert made.status == "finished"
    assert "could not save checkpoint-4" in capsys.readouterr().out
    assert not (tmp_path / "full" / "checkpoint-4").exists()


def test_what_cannot_begin_or_be_resumed(small_model, tmp_path, finished):
    whole, _ = finished
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n{"x": 1}\n')
    asked = make(small_model)
    for of, out, given, told in (
        (asked, tmp_path / "new", {"resume": True}, "no run in .* to resume"),
        (asked, whole, {}, "holds a run already; add --resume"),
        (replace(asked, learning_rate=1e-3), whole, {"resume": True}, "another recipe .learning_rate was 0.005"),
        (replace(asked, max_steps=15), whole, {"resume": True}, "16 steps long already; choose --max-steps 16 or more"),
        (replace(asked, data=str(rows)), tmp_path / "run", {"strict": True}, "--strict: .*unknown shape"),
        (asked, rows / "run", {}, "cannot be written to .*choose another --out"),
    ):
        with pytest.raises(InputError, match=told):
            fit.fit(of, out, **given)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="needs a GPU; use --method lora16 or dora"):
            fit.fit(make(small_model, method="qlora"), tmp_path / "run")


def test_a_finished_run_stays_as_it_is_and_a_longer_one_goes_on(small_model, tmp_path, finished, capsys):
    _, made = finished
    out = tmp_path / "run"
    fit.fit(make(small_model, steps=3), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = fit.fit(make(small_model, steps=3), out, resume=True)
    assert "is finished and stays as it is" in capsys.readouterr().out
    assert again.measures["steps"] == 3 and again.measures["tokens"] > 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    written = record.read(out / "record.json")  # killed between its last checkpoint and its adapter
    record.write(replace(written, status="running"), out / "record.json")
    (out / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter")
    resumed = fit.fit(make(small_model, steps=3), out, resume=True)
    assert resumed.measures["losses"] == again.measures["losses"]  # and no fourth step
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == (tmp_path / "adapter").read_bytes()

    longer = fit.fit(make(small_model, steps=5), out, resume=True)
    assert longer.measures["steps"] == 5 and longer.measures["losses"][:3] == made.measures["losses"][:3]


def test_other_data_or_another_base_is_no_resumption(small_tokenizer, tmp_path):
    data, base, out = tmp_path / "rows.jsonl", tmp_path / "base", tmp_path / "run"
    rows = [json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}) for n in range(9)]
    data.write_text("\n".join(rows[:8]))
    make_model(base, small_tokenizer)
    asked = make(base, 4, ["max_length=64", "batch_size=1"], data=str(data))
    fit.fit(replace(asked, max_steps=2), out)
    data.write_text("\n".join(rows))
    with pytest.raises(InputError, match="began with other data .*put it back"):
        fit.fit(asked, out, resume=True)
    data.write_text("\n".join(rows[:8]))
    make_model(base, small_tokenizer, seed=1)
    with pytest.raises(InputError, match="began with other model .digest was"):
        fit.fit(asked, out, resume=True)


def test_a_run_without_a_checkpoint_begins_anew(small_model, tmp_path, monkeypatch, capsys):
    """One that never began leaves its folder free; one that was cut off before its first checkpoint is resumed."""
    asked, out = make(small_model, steps=5), tmp_path / "run"
    for method in ("compute_loss", "_save_checkpoint"):
        with monkeypatch.context() as patched, pytest.raises(IndexError):
            patched.setattr(Trainer, method, Mock(side_effect=IndexError("index out of range in self")))
            fit.fit(asked, out)
    with pytest.raises(InputError, match="holds a run already"):
        fit.fit(asked, out)
    assert fit.fit(asked, out, resume=True).measures["steps"] == 5
    assert "stopped before its first checkpoint; it begins anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        ({}, ["target_modules=q_proj,v_prj"], "target_modules=v_prj matches no linear layer .* q_proj"),
        ({}, ["target_modules=lm_head"], "target_modules=lm_head matches no linear layer"),
        ({"vocab_size": 900}, [], "the tokenizer of .* has 1,000 tokens and its embedding 900"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, [], "rope scaling 'linear' is not supported"),
        ({"model_type": "mistral"}, [], "is of type mistral"),
    ],
)
def test_what_would_fail_later_is_refused_before_training(small_model, tmp_path, config, settings, told):
    base = shutil.copytree(small_model, tmp_path / "base")
    changed = json.loads((base / "config.json").read_text()) | config
    (base / "config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=told):
        fit.fit(make(base, settings=settings), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("step", [2, 6])
def test_memory_that_runs_out_in_mid_training_costs_no_run(step, small_model, tmp_path, monkeypatch, capsys, finished):
    """Before the first checkpoint (every 4 steps) it begins anew with less at a time, after it from there."""
    whole, _ = finished
    loss = Trainer.compute_loss

    def short_of_memory(self, *args, **kwargs):
        if self.args.per_device_train_batch_size == 2 and self.state.global_step == step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(memory, "plans", lambda *_: [Plan(2, False, False), Plan(1, False, False)])
    monkeypatch.setattr(Trainer, "compute_loss", short_of_memory)
    made = fit.fit(make(small_model), tmp_path / "run")
    assert "trying with less at a time" in capsys.readouterr().out
    assert made.settings["plan"]["micro_batch"] == 1 and len(made.measures["losses"]) == STEPS
    assert difference(tmp_path / "run", whole) <= (2e-4 if step > 4 else 0)


def test_a_base_is_loaded_without_the_training_room(small_model):
    """A plain PEFT model, with SDPA: what others load to evaluate or export."""
    model = load.load(load.resolve(str(small_model)), make(small_model), "fp32")
    assert model.config._attn_implementation == "sdpa" and type(model).__name__ == "PeftModelForCausalLM"


def test_a_machine_without_fp8_says_so(monkeypatch):
    for device, capability in (("cpu", None), ("cuda", (8, 0)), ("cuda", (8, 9))):
        monkeypatch.setattr(hardware, "device", Mock(return_value=device))
        monkeypatch.setattr(hardware, "device_name", Mock(return_value="this machine"))
        monkeypatch.setattr(hardware, "is_ampere", Mock(return_value=device == "cuda"))
        monkeypatch.setattr(hardware.torch.cuda, "get_device_capability", Mock(return_value=capability))
        if capability == (8, 9):
            assert hardware.precision("fp8") == "fp8" and hardware.precision("auto") == "bf16"
        else:
            with pytest.raises(InputError, match="this machine has no FP8"):
                hardware.precision("fp8")
