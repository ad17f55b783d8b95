"""Training for real, on a tiny model: what is written, how it stops, and that a kill at any moment loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iris import checkpoints, recipe, record, train
from iris.errors import InputError, RunError
from iris.plan import Plan

SETTINGS = ["precision=fp32", "max_length=128", "batch_size=2", "save_steps=4", "learning_rate=5e-3"]


def make(model, steps=12, settings=(), **given):
    return recipe.make([*SETTINGS, *settings], model=str(model), max_steps=steps, **given)


def command(model, out, *more, steps=12):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["train", "--model", str(model), "--out", str(out), "--max-steps", str(steps), *settings, *more]
    return [sys.executable, "-m", "iris", *words]


def weights(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train.fit(make(tiny_model), out)


def test_a_run_writes_all_it_should(finished):
    out, made = finished
    assert {"adapter", "record.json", "loss.png"} <= {path.name for path in out.iterdir()}
    again = record.read(out / "record.json")
    assert again == made and again.status == "finished"
    assert again.measures["steps"] == 12 and len(again.measures["losses"]) == 12
    assert again.measures["loss_last"] < again.measures["loss_first"]
    assert again.data["rows"] + sum(again.data["dropped"].values()) == again.data["read"]
    assert again.settings["precision"] == "fp32"


def test_only_the_adapter_is_trained_and_all_of_it(finished):
    out, _ = finished
    tensors = weights(out)
    assert len(tensors) == 2 * 7 * 2  # layers x linear layers x (A, B)
    assert all(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_methods_see_the_same_data_and_start_from_the_same_adapter(tiny_model, tmp_path, finished):
    _, lora = finished
    dora = train.fit(make(tiny_model, method="dora"), tmp_path / "dora")
    assert dora.data == lora.data
    assert {k: v for k, v in dora.recipe.items() if v != lora.recipe[k]} == {"method": "dora"}
    assert dora.measures["tokens"] == lora.measures["tokens"]
    assert abs(dora.measures["loss_first"] - lora.measures["loss_first"]) < 1e-4  # B is zero: both are the base


def test_killed_at_any_moment_and_resumed_is_bit_identical(tiny_model, tmp_path, finished):
    """SIGKILL after the first, second and third checkpoint began to be written; the last with its end cut off."""
    whole, _ = finished
    out = tmp_path / "killed"
    for kill_at in (4, 8):
        process = subprocess.Popen(
            command(tiny_model, out, *(["--resume"] if out.exists() else [])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_for(out / f"checkpoint-{kill_at}" / checkpoints.MANIFEST, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "adapter").exists()
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    os.truncate(newest / "adapter_model.safetensors", 1000)  # as if the kill had come while it was written
    done = subprocess.run(command(tiny_model, out, "--resume"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{newest.name} is incomplete" in done.stdout and "resuming from checkpoint-4" in done.stdout
    expected, found = weights(whole), weights(out)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert record.read(out / "record.json").measures["losses"] == record.read(whole / "record.json").measures["losses"]


def _wait_for(path: Path, process, seconds=120):
    begun = time.monotonic()
    while not path.exists():
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() - begun < seconds, f"{path} did not appear"
        time.sleep(0.002)


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(tiny_model, tmp_path, finished):
    whole, _ = finished
    out = tmp_path / "interrupted"
    process = subprocess.Popen(command(tiny_model, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for(out / "checkpoint-4" / checkpoints.MANIFEST, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "--resume" in errors and "Traceback" not in errors
    assert record.read(out / "record.json").status == "stopped"
    assert checkpoints.last(out) is not None
    train.fit(make(tiny_model), out, resume=True)
    assert all(weights(out)[name].equal(tensor) for name, tensor in weights(whole).items())


def test_a_budget_of_minutes_is_kept_and_the_rate_decays(tiny_model, tmp_path):
    begun = time.monotonic()
    made = train.fit(make(tiny_model, steps=100000), tmp_path / "short", minutes=0.3)
    assert time.monotonic() - begun < 0.3 * 60
    assert made.status == "finished" and made.measures["steps"] < 100000
    last = json.loads(
        (max((tmp_path / "short").glob("checkpoint-*"), key=os.path.getmtime) / "losses.json").read_text()
    )
    assert last[-1]["lr"] < 0.1 * 5e-3


def test_a_diverging_run_stops_with_a_sentence(tiny_model, tmp_path):
    with pytest.raises(RunError, match="the loss went from .* lower learning_rate"):
        train.fit(make(tiny_model, steps=200, settings=["learning_rate=1e38", "max_grad_norm=1e38"]), tmp_path / "wild")
    assert record.read(tmp_path / "wild" / "record.json").status == "failed"


def test_a_failed_save_does_not_end_the_training(tiny_model, tmp_path, monkeypatch, capsys):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "seal", full)
    made = train.fit(make(tiny_model, steps=5), tmp_path / "full")
    assert made.status == "finished"
    assert "could not save checkpoint-4" in capsys.readouterr().out
    assert not (tmp_path / "full" / "checkpoint-4").exists()


def test_what_cannot_be_resumed(tiny_model, tmp_path, finished):
    whole, _ = finished
    with pytest.raises(InputError, match="no run in .* to resume"):
        train.fit(make(tiny_model), tmp_path / "new", resume=True)
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        train.fit(make(tiny_model), whole)
    with pytest.raises(InputError, match="another recipe .learning_rate was 0.005"):
        train.fit(make(tiny_model, settings=["learning_rate=1e-3"]), whole, resume=True)


def test_strict_makes_a_dropped_row_an_error(tiny_model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"x": 1}\n')
    with pytest.raises(InputError, match="--strict: .*unknown shape"):
        train.fit(make(tiny_model, data=str(path)), tmp_path / "run", strict=True)


def test_a_folder_that_cannot_be_written_to(tiny_model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to .*choose another --out"):
        train.fit(make(tiny_model), tmp_path / "file" / "run")


def test_four_bit_needs_a_gpu(tiny_model, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="needs a GPU; use --method lora16 or dora"):
        train.fit(make(tiny_model, method="qlora"), tmp_path / "run")


@pytest.mark.parametrize("step", [2, 6])
def test_memory_that_runs_out_in_mid_training_costs_no_run(step, tiny_model, tmp_path, monkeypatch, capsys, finished):
    """Before the first checkpoint (every 4 steps) it begins anew with less at a time, after it from there."""
    whole, _ = finished
    plans = [Plan(2, False, False), Plan(1, False, False)]
    loss = train.Trainer.compute_loss

    def short_of_memory(self, *args, **kwargs):
        if self.args.per_device_train_batch_size == 2 and self.state.global_step == step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(train, "plans", lambda *_: plans)
    monkeypatch.setattr(train.Trainer, "compute_loss", short_of_memory)
    made = train.fit(make(tiny_model), tmp_path / "run")
    assert "trying with less at a time" in capsys.readouterr().out
    assert made.settings["plan"]["micro_batch"] == 1 and len(made.measures["losses"]) == 12
    trained, expected = weights(tmp_path / "run"), weights(whole)
    assert all(torch.allclose(trained[name], expected[name], atol=2e-4) for name in expected)
    assert step > 4 or all(torch.equal(trained[name], expected[name]) for name in expected)
