"""A training on a rented machine: the exact job, its price, its log, its results; the stand-in for the Hub runs it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN
from jobs_server import JobsServer
from small_llama import make_model, make_tokenizer

from iris import record


@pytest.fixture
def server(tmp_path):
    """The stand-in with a tiny model in it. On its machines `pip` installs nothing: all is there."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "pip").write_text("#!/bin/sh\nexit 0\n")
    (commands / "pip").chmod(0o755)
    with JobsServer(tmp_path / "machine", [commands, Path(sys.executable).parent]) as server:
        folder = make_model(tmp_path / "model", make_tokenizer())
        server.add_repo("model", "user/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
        yield server


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "poems; rm.jsonl"  # a shell must not read it
    path.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}) + "\n" for n in range(9)))
    return path


def command(rows, out, *more):
    words = ["train", "--on", "hf-jobs", "--flavor", "a10g-small", "--repo", "user/poems", "--model", "user/tiny"]
    words += ["--data", rows, "--out", out, "--max-steps", 3, "--set", "max_length=64", "--set", "batch_size=1"]
    return [sys.executable, "-m", "iris", *map(str, [*words, *more])]


def environment(server, tmp_path, **more):
    given = {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    return os.environ | server.env | given | more


def run(server, tmp_path, *words, **more):
    done = subprocess.run(
        command(*words), capture_output=True, text=True, timeout=200, env=environment(server, tmp_path, **more)
    )
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr
    return done


def test_the_job_trains_and_its_results_come_back(server, rows, tmp_path):
    out = tmp_path / "runs" / "first"
    done = run(server, tmp_path, rows, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a10g-small: $0.0167 a minute, ended after 120 minutes at the latest: $2.00 at most" in done.stdout
    assert done.stdout.index("at most") < done.stdout.index("is sent: ")  # the price comes first
    assert "9 of 9 rows" in done.stdout  # the job's log
    (job,) = server.jobs.values()
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN} and job.spec["timeoutSeconds"] == 7200
    assert TOKEN not in json.dumps({key: value for key, value in job.spec.items() if key != "secrets"})
    assert server.repos["model", "user/poems"].private
    made = record.read(out / "record.json")
    assert made.status == "finished" and made.measures["steps"] == 3
    assert record.folder_digest(out / "adapter") == made.adapter["digest"]


def test_a_dry_run_prints_the_exact_job_and_sends_nothing(server, rows, tmp_path):
    done = run(server, tmp_path, rows, tmp_path / "first", "--dry-run", "--timeout", 30, "--gpus", 2)
    assert done.returncode == 0 and "$0.50 at most" in done.stdout
    spec = json.loads(done.stdout[done.stdout.index("{") :])
    assert spec["image"] == "python:3.11" and spec["flavor"] == "a10g-small" and spec["timeout"] == 1800
    assert spec["secrets"] == ["HF_TOKEN"] and spec["namespace"] == "user"
    script = spec["command"][-1]
    assert (
        "python -m iris train --model user/tiny --method lora16 --out first --data 'job/first/poems; rm.jsonl'"
        in script
    )
    assert "--gpus 2" in script and "push_checkpoints=user/poems" in script and re.search(r"torch==\S+", script)
    assert not server.jobs and ("model", "user/poems") not in server.repos
    assert not server.count("POST")


def test_a_job_that_fails_ends_with_a_sentence(server, rows, tmp_path):
    done = run(server, tmp_path, rows, tmp_path / "first", "--set", "max_length=2")
    assert done.returncode == 1
    assert "fits into max_length=2" in done.stdout  # the log says why
    assert re.search(r"iris: job \w+ ended as ERROR .*--resume goes on", done.stderr)


@pytest.mark.parametrize("answer, cancelled", [("y\n", True), ("\n", False)])
def test_ctrl_c_asks_whether_to_cancel(server, rows, tmp_path, answer, cancelled):
    server.hold = True  # the job writes a line and goes on for ever
    process = subprocess.Popen(
        command(rows, tmp_path / "first"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(server, tmp_path, PYTHONUNBUFFERED="1"),
    )
    try:
        for line in process.stdout:
            if "holding" in line:
                break
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate(answer, timeout=60)
    finally:
        process.kill()
    (job,) = server.jobs.values()
    assert "cancel job" in told and "Traceback" not in errors
    assert (job.stage == "CANCELED") is cancelled
    assert process.returncode == (1 if cancelled else 0)
    assert ("is cancelled" in errors) is cancelled and ("it goes on: http" in told) is not cancelled


def test_what_the_hub_refuses_is_a_sentence(server, rows, tmp_path):
    server.fail("GET /api/jobs/hardware", 500, times=9)
    server.fail("POST /api/jobs/user", 402, headers={"X-Error-Message": "Pre-paid credit balance is insufficient"})
    done = run(server, tmp_path, rows, tmp_path / "first")
    assert done.returncode in (1, 2) and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "see https://" in done.stdout  # where the prices are
    assert run(server, tmp_path, rows, tmp_path / "first", HF_TOKEN="").returncode == 2


def test_data_is_not_sent_into_a_public_repository(server, rows, tmp_path):
    server.add_repo("model", "user/poems", {})
    done = run(server, tmp_path, rows, tmp_path / "first")
    assert done.returncode == 2 and "user/poems is public" in done.stderr
    assert len(server.repos["model", "user/poems"].history) == 1 and not server.jobs


def test_what_cannot_travel_is_told_before_anything_is_sent(server, rows, tmp_path):
    for more, told in {
        ("--flavor", "a10g-smal"): "did you mean a10g-small",
        ("--repo", "poems"): "--repo USER/NAME",
        ("--model", str(tmp_path)): "does not travel",
        ("--data-dir", str(tmp_path)): "does not travel",
        ("--timeout", "0"): "--timeout must be above zero",
    }.items():
        done = run(server, tmp_path, rows, tmp_path / "first", *more)
        assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not server.requests
