"""Two processes are one: the same adapter, the same losses, the same scores; and one that is killed ends the run."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_llama import make_model, make_tokenizer

from iris import checkpoints, distributed, recipe, record
from iris.errors import InputError
from iris.fast import FastLinear
from iris.trainer import EvenSampler

SETTINGS = ["precision=fp32", "max_length=64", "batch_size=4", "save_steps=5", "learning_rate=5e-3", "warmup_steps=0"]
STEPS = 13  # two epochs and a bit


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("small") / "model", make_tokenizer())


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Rows whose packed sequences do not fill the last step of an epoch."""
    chance, path = random.Random(0), tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = "rain wind stone river moon salt ash bell thorn light".split()
    say = lambda n: " ".join(chance.choices(words, k=n))  # noqa: E731
    lines = [{"instruction": say(5), "output": say(chance.randint(20, 27))} for _ in range(22)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def iris(*words, timeout=240):
    """The command in a process of its own; one thread each, as the machine has two cores."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "iris", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def train(model, rows, out, *more, steps=STEPS):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["train", "--model", model, "--data", rows, "--out", out, "--max-steps", steps, *settings, *more]


def difference(a: Path, b: Path) -> float:
    """The largest difference of any weight of two runs' adapters."""
    first, second = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (a, b))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def one(small, rows, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    done = iris(*train(small, rows, out))
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def same_run(one: Path, two: Path) -> None:
    alone, shared = (record.read(out / "record.json") for out in (one, two))
    assert alone.data["sequences"] % 4 == 2  # else nothing is shown of a step that is not full
    assert (alone.settings["processes"], shared.settings["processes"]) == (1, 2)
    assert shared.status == "finished" and shared.measures["tokens"] == alone.measures["tokens"]
    same_losses(one, two)
    assert difference(one, two) < 1e-5


def same_losses(one: Path, two: Path) -> None:
    alone, shared = (record.read(out / "record.json").measures["losses"] for out in (one, two))
    assert max(abs(a - b) for a, b in zip(alone, shared, strict=True)) < 1e-4


@pytest.fixture(scope="module")
def two(small, rows, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two") / "run"
    done = iris(*train(small, rows, out, "--gpus", 2))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("adapter in") == 1  # one of them speaks
    return out


def test_two_processes_train_the_adapter_of_one(one, two):
    same_run(one, two)


@pytest.mark.slow
def test_a_compiled_base_spread_over_two_trains_the_adapter_of_one(small, rows, one, tmp_path):
    """The hooks that gather a layer's weights go around what is compiled. The adapters are those of compiled runs, as
    compiling rounds otherwise; the losses are those of the plain run too."""
    if not shutil.which("g++"):
        pytest.skip("to compile for a CPU takes g++, which is not here")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for out, gpus in ((alone, 1), (shared, 2)):
        done = iris(*train(small, rows, out, "--gpus", gpus, "--set", "fsdp=true", "--set", "compile=true"))
        assert done.returncode == 0, done.stderr[-2000:]
        plan = record.read(out / "record.json").settings["plan"]
        assert plan["compile"] and plan["sharded"] is (gpus == 2)
    same_run(alone, shared)
    same_losses(one, shared)


@pytest.mark.parametrize("more", [["--gpus", 2, "--set", "fsdp=true"], []], ids=["one, then two", "two, then one"])
def test_a_checkpoint_goes_on_with_another_number_of_processes(small, rows, one, two, tmp_path, more):
    """On two with the base spread over them."""
    begun, out = one if more else two, tmp_path / "run"
    shutil.copytree(begun / "checkpoint-10", out / "checkpoint-10")
    shutil.copy(begun / "record.json", out)
    done = iris(*train(small, rows, out, "--resume", *more))
    assert done.returncode == 0 and "resuming from checkpoint-10" in done.stdout, done.stderr[-2000:]
    made = record.read(out / "record.json")
    assert made.settings["plan"]["sharded"] is bool(more) and len(made.measures["losses"]) == STEPS
    assert difference(one, out) < 1e-5


def workers_of(out: Path) -> list[int]:
    """The processes that train into `out`, by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = dict(part.split(b"=", 1) for part in (folder / "environ").read_bytes().split(b"\0") if part)
        except (OSError, ValueError):
            continue
        if str(out).encode() in words and b"LOCAL_RANK" in environment:
            found[int(environment[b"RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_one_process_goes_on(small, rows, one, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "iris", *map(str, train(small, rows, out, "--gpus", 2, steps=100000))]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        begun = time.monotonic()
        while not (out / "checkpoint-5" / checkpoints.MANIFEST).exists():
            assert run.poll() is None and time.monotonic() - begun < 120
            time.sleep(0.005)
        os.kill(workers_of(out)[1], signal.SIGKILL)
        begun = time.monotonic()
        _, told = run.communicate(timeout=60)
    finally:
        run.kill()
    assert time.monotonic() - begun < 60 and run.returncode == 1
    last = told.strip().splitlines()[-1]
    assert last.startswith("iris: process 2 of 2 was killed (SIGKILL); checkpoint-") and "--resume" in last
    assert "Traceback" not in told and not workers_of(out)
    for later in out.glob("checkpoint-*"):  # the schedule was another's: of its first steps only the rate is the same
        if later.name != "checkpoint-5":
            shutil.rmtree(later)
    done = iris(*train(small, rows, out, "--resume"))
    assert done.returncode == 0 and "resuming from checkpoint-5" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_of_both(small, rows, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "iris", *map(str, train(small, rows, out, "--gpus", 2, steps=100000))]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        begun = time.monotonic()
        while not (out / "checkpoint-5" / checkpoints.MANIFEST).exists():
            assert run.poll() is None and time.monotonic() - begun < 120
            time.sleep(0.005)
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode not in (0, 2) and "--resume" in told and "Traceback" not in told
    assert record.read(out / "record.json").status == "stopped"
    assert checkpoints.last(out) is not None


@pytest.mark.slow
def test_accelerate_launches_it_on_two_hosts(small, rows, one, tmp_path):
    """Both are this one: two launchers that meet at an address, each with a process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = []
    for number in range(2):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
        command += ["--num_machines", 2, "--machine_rank", number, "--main_process_ip", "127.0.0.1"]
        command += ["--main_process_port", port, "-m", "iris", *train(small, rows, tmp_path / "two")]
        hosts.append(
            subprocess.Popen(
                list(map(str, command)), stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        )
    try:
        told = [host.communicate(timeout=200)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], told
    same_run(one, tmp_path / "two")


def test_a_batch_that_cannot_be_shared_is_told_at_once(small, rows, tmp_path):
    done = iris(*train(small, rows, tmp_path / "run", "--gpus", 3))
    assert done.returncode == 2 and "3 GPUs cannot share the 4 sequences" in done.stderr
    with pytest.raises(InputError, match="0 GPUs cannot share"):
        distributed.share(4, 0)


def test_the_order_is_that_of_one_and_every_step_is_full():
    import torch
    from accelerate.data_loader import SeedableRandomSampler

    torch.manual_seed(recipe.Recipe.seed)
    alone = SeedableRandomSampler(range(22))
    steps = 0
    shared = EvenSampler(22, 4, lambda: steps)
    for epoch in range(3):
        alone.set_epoch(epoch)
        assert list(shared) == [*alone, 22, 22]
        steps += 6


def test_two_processes_lose_no_item_and_count_none_twice(small, tmp_path):
    """An odd number of items: lm-eval fills up the second process's share with a copy."""
    folder = tmp_path / "arc_challenge"
    folder.mkdir()
    for split, count in (("train", 1), ("test", 13)):
        choices = [
            {"label": list("ABCD"), "text": [f"{n} is {word}" for word in "so not odd even".split()]}
            for n in range(count)
        ]
        lines = [
            {"id": str(n), "question": f"What of {n}?", "choices": choices[n], "answerKey": "ABCD"[n % 4]}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for gpus in (1, 2):
        done = iris(
            *("evaluate", "--model", small, "--tasks", "poetry_verses,arc_challenge", "--limit", 7, "--gpus", gpus),
            *("--data-dir", tmp_path),
            *("--out", tmp_path / str(gpus) / "scores.json"),
        )
        assert done.returncode == 0, done.stderr[-2000:]
    alone, shared = (record.read(tmp_path / str(gpus) / "scores.json") for gpus in (1, 2))
    items = [record.read_items(tmp_path / str(gpus) / "scores.json") for gpus in (1, 2)]
    for task, scores in alone.tasks.items():
        assert shared.tasks[task]["n"] == scores["n"] == 7
        assert shared.tasks[task]["items_hash"] == scores["items_hash"]
        assert items[1][task]["id"] == items[0][task]["id"]
        assert items[1][task]["value"] == pytest.approx(items[0][task]["value"], abs=1e-5)
        assert shared.tasks[task]["value"] == pytest.approx(scores["value"], abs=1e-6)


def test_a_packed_weight_travels_bit_by_bit():
    """Seen as 16-bit floats, some of its bytes are NaNs, which a GPU's copy makes all alike; as 32-bit floats none is
    converted, and FSDP of every torch takes them as a parameter."""
    packed = torch.arange(256, dtype=torch.uint8).repeat(2).view(-1, 1)
    layer = SimpleNamespace(row_norms=None, nf4=(packed, torch.ones(16)), out_features=4, base_layer=SimpleNamespace())
    FastLinear.get_ready_to_shard(layer, torch.device("cpu"))
    weight = layer.base_layer.weight
    assert weight.dtype == torch.float32 and not weight.requires_grad and weight.shape == (4, 32)
    assert torch.equal(weight.view(torch.uint8).view(-1, 1), packed) and layer.nf4[0] is None
