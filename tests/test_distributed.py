"""Two processes under accelerate are one: the same adapter and losses, base whole or sharded, from any checkpoint."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_llama import make_model, make_tokenizer

from iris import InputError, recipe, record
from iris.train import fit

SETTINGS = ["precision=fp32", "max_length=64", "batch_size=4", "save_steps=5", "learning_rate=5e-3", "warmup_steps=0"]
STEPS = 13  # two epochs and a bit; sequences that fill every step


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> tuple[Path, Path]:
    """A small model, and 20 rows of which each fills a sequence of its own."""
    folder, chance = tmp_path_factory.mktemp("material"), random.Random(0)
    words = "rain wind stone river moon salt ash bell thorn light".split()
    songs = [" ".join(chance.choices(words, k=chance.randint(18, 24))) for _ in range(20)]
    lines = [json.dumps({"instruction": "Sing.", "output": song}) for song in songs]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return make_model(folder / "model", make_tokenizer()), folder / "rows.jsonl"


def asked(material, *settings):
    model, rows = material
    return recipe.make([*SETTINGS, *settings], model=str(model), data=str(rows), max_steps=STEPS)


def launch(material, out: Path, *more: str) -> subprocess.CompletedProcess:
    """`accelerate launch -m iris train`, one thread a process, as the machine has two cores."""
    model, rows = material
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    command += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
    command += ["-m", "iris", "train", "--model", model, "--data", rows, "--out", out, "--max-steps", STEPS, *more]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def one(material, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    assert fit.fit(asked(material), out).data["sequences"] == 20
    return out


@pytest.fixture(scope="module")
def two(material, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two") / "run"
    done = launch(material, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("adapter in") == 1  # one of them speaks
    return out


def assert_same(one: Path, two: Path) -> None:
    first, second = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, two))
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    alone, shared = (record.read(out / "record.json").measures for out in (one, two))
    assert alone["tokens"] == shared["tokens"]
    assert alone["losses"] == pytest.approx(shared["losses"], abs=1e-4)


def cut_off(run: Path, out: Path) -> Path:
    """The folder of a run that was killed after its checkpoint-10."""
    shutil.copytree(run / "checkpoint-10", out / "checkpoint-10")
    shutil.copy(run / "record.json", out)
    return out


def test_a_checkpoint_of_one_goes_on_on_two_with_the_base_sharded(material, one, tmp_path):
    out = cut_off(one, tmp_path / "run")
    done = launch(material, out, "--resume", "--set", "fsdp=true")
    assert done.returncode == 0 and "resuming from checkpoint-10" in done.stdout, done.stderr[-2000:]
    assert record.read(out / "record.json").settings["plan"]["sharded"]
    assert_same(one, out)


def test_two_processes_train_the_adapter_of_one_and_their_checkpoint_goes_on_on_one(material, one, two, tmp_path):
    assert_same(one, two)
    assert record.read(two / "record.json").settings["processes"] == 2
    out = cut_off(two, tmp_path / "run")
    fit.fit(asked(material), out, resume=True)
    assert_same(one, out)


def test_what_cannot_be_shared_is_told(material, tmp_path):
    with pytest.raises(InputError, match="cannot be shared evenly by 1 processes that take 3 sequences"):
        fit.fit(asked(material, "micro_batch=3"), tmp_path / "run")
