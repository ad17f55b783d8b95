"""The Hub, as the real clients see it: a stand-in on loopback that refuses, fails, breaks off and stalls."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import ALWAYS, TOKEN, HubServer

from iris import checkpoints, cli, data, hub, model, push, recipe
from iris.errors import InputError, RunError

LLAMA_CONFIG = json.dumps({"model_type": "llama"}).encode()


def sharegpt(count: int) -> list[dict]:
    return [
        {"conversations": [{"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": f"It is {n}, gladly."}]}
        for n in range(count)
    ]


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The stand-in, with this process's clients pointed at it, a cache of their own, and no waiting in real time."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    with HubServer() as server:
        for key, value in server.env.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        server.slept = []
        monkeypatch.setattr(time, "sleep", server.slept.append)
        yield server


def sentence(error: Exception) -> str:
    """The message, once it is seen to be one sentence without a token or a trace."""
    text = str(error)
    assert "\n" not in text and len(text) < 250 and "Traceback" not in text
    assert TOKEN not in text and "hf_Stand" not in text
    assert ";" in text or ":" in text or "," in text  # what happened, and what to do
    return text


# Loading, where all is well


def test_a_model_is_resolved_and_loaded(server, tiny_model):
    from transformers import AutoModelForCausalLM

    from iris import chat

    repo = server.add_repo("model", "user/tiny", {path.name: path.read_bytes() for path in tiny_model.iterdir()})
    source = model.resolve("user/tiny")
    assert (source.id, source.path, source.hub_revision) == ("user/tiny", "user/tiny", repo.history[0][0])
    tokenizer = chat.load_tokenizer(source.path, source.hub_revision)
    loaded = AutoModelForCausalLM.from_pretrained(source.path, revision=source.hub_revision)
    assert loaded.config.vocab_size == len(tokenizer)
    assert server.leaks == 0  # the token went to the Hub only, not to the host of the large files


@pytest.mark.parametrize("shape", ["jsonl", "parquet"])
def test_a_data_set_is_loaded(server, tmp_path, shape):
    rows = sharegpt(30)
    if shape == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
        files = {"data/train-00000-of-00001.parquet": (tmp_path / "train.parquet").read_bytes()}
    else:
        files = {"train.jsonl": jsonl(rows), "README.md": b"---\nlicense: apache-2.0\n---\n# Rows\n"}
    repo = server.add_repo("dataset", "user/rows", files)
    found = data.load("user/rows", rows=10)
    assert (found.read, len(found.rows), found.revision) == (30, 10, repo.history[0][0])
    assert found.rows[0][1]["content"].endswith("gladly.")


@pytest.mark.skipif("push_checkpoints" not in recipe.Recipe.__dataclass_fields__, reason="the recipe has no such field")
def test_training_from_the_hub_and_back(tiny_model, tmp_path):
    """The command itself: a gated model, a private data set, checkpoints pushed while it trains, fetched by a machine
    that has nothing, and gone on with."""
    with HubServer() as server:
        files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
        server.add_repo("model", "user/tiny", files, gated=True).granted.add(TOKEN)
        server.add_repo("dataset", "user/rows", {"train.jsonl": jsonl(sharegpt(40))}, private=True)
        command = "--model user/tiny --data user/rows --set max_length=128 --set batch_size=1 --set save_steps=1"
        command += " --set push_checkpoints=user/kept --out"
        done = iris_train(server, tmp_path, *command.split(), str(tmp_path / "a" / "night"), "--max-steps", "3")
        assert done.returncode == 0, done.stderr[-2000:]
        record = json.loads((tmp_path / "a" / "night" / "record.json").read_text())
        assert record["model"]["revision"] == server.repos["model", "user/tiny"].history[0][0]
        assert record["data"]["revision"] == server.repos["dataset", "user/rows"].history[0][0]
        assert "not pushed" not in done.stdout and "night/checkpoint-3" in pushed(server)

        other = tmp_path / "b" / "night"
        more = iris_train(server, tmp_path, *command.split(), str(other), "--max-steps", "4", "--resume")
        assert more.returncode == 0, more.stderr[-2000:]
        assert "checkpoint-3 was fetched from user/kept" in more.stdout and (other / "adapter").is_dir()
        assert len(json.loads((other / "record.json").read_text())["measures"]["losses"]) == 4
        assert "night/checkpoint-4" in pushed(server) and server.leaks == 0


def iris_train(server: HubServer, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "iris", "train", *arguments],
        env=os.environ | server.env | {"HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_what_the_command_says(server, tmp_path, capsys, monkeypatch):
    server.add_repo("model", "user/name", {"config.json": LLAMA_CONFIG})
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for code, fault in ((2, "missing"), (2, "bad token"), (1, 503)):
        server.heal()
        server.fail("/api/models/user/name", fault, times=ALWAYS)
        assert cli.main(["train", "--model", "user/name", "--out", str(tmp_path / "run")]) == code
        told = capsys.readouterr().err.splitlines()
        assert told[-1].startswith("iris: ") and "hf_wrong" not in "".join(told)
        assert len(told) <= 4  # one line for each further try, and the sentence


@pytest.mark.parametrize("fault", [403, 500, "drop"])
def test_a_file_that_the_hub_fails_to_deliver_is_not_missing(server, smollm2, fault):
    """transformers goes on without tokenizer_config.json where the Hub fails, and makes another tokenizer."""
    from iris import chat

    files = {path.name: path.read_bytes() for path in smollm2.iterdir() if path.suffix != ".safetensors"}
    repo = server.add_repo("model", "user/name", files)
    server.fail("HEAD .*/tokenizer_config.json", fault, times=20 if fault == 500 else 1)
    commit = repo.history[0][0]
    if fault == 403:
        with pytest.raises(InputError, match="your token may not use the model user/name"):
            hub.snapshot("user/name", commit)
        return
    folder = hub.snapshot("user/name", commit)
    assert (folder / "tokenizer_config.json").read_bytes() == files["tokenizer_config.json"]
    server.fail("/resolve/.*(json|jinja)$", 500, times=ALWAYS)  # from here on the cache is enough
    told = chat.load_tokenizer("user/name", commit)
    assert told.init_kwargs.keys() == chat.load_tokenizer(str(smollm2)).init_kwargs.keys()


# Refusals: InputError, asked once

REFUSALS = {
    "gated": "is gated: accept its terms on its page",
    "missing": "is not on the Hub, or is private; check the name",
    401: "is not on the Hub, or is private; check the name",
    403: "your token may not use",
    "bad token": "the Hub refuses your token (401)",
}


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_refusals_are_not_asked_again(server, kind, fault):
    server.add_repo(kind, "user/name", {"config.json": LLAMA_CONFIG})
    server.fail("/api/(models|datasets)", fault, times=ALWAYS)
    with pytest.raises(InputError) as caught:
        model.resolve("user/name") if kind == "model" else data.load("user/name")
    assert REFUSALS[fault] in sentence(caught.value)
    assert server.count("GET /api/(models|datasets)") == 1 and not server.slept


@pytest.mark.parametrize("token", ["", TOKEN])
def test_gated_files_behind_an_open_page(server, monkeypatch, token):
    """What the Hub really does: everyone sees that a gated repository is there, its files are refused."""
    monkeypatch.setenv("HF_TOKEN", token)
    server.add_repo("dataset", "user/rows", {"train.jsonl": jsonl(sharegpt(3))}, gated=True)
    server.add_repo("model", "user/name", {"config.json": LLAMA_CONFIG}, gated=True)
    with pytest.raises(InputError, match="the data set user/rows is gated: accept its terms"):
        data.load("user/rows")
    from transformers import AutoConfig

    with pytest.raises(InputError, match="the model user/name is gated: accept its terms"):
        hub.patiently("the model user/name", lambda: AutoConfig.from_pretrained("user/name"))


def test_a_repository_without_what_is_needed(server):
    server.add_repo("dataset", "user/empty", {"README.md": b"# Nothing\n"})
    server.add_repo("dataset", "user/broken", {"train.jsonl": b'{"a": 1}\n{"a": \n'})
    server.add_repo("model", "user/empty", {"README.md": b"# Nothing\n"})
    for name in ("user/empty", "user/broken"):
        with pytest.raises(InputError) as caught:
            data.load(name)
        assert f"the data set {name}" in sentence(caught.value)
    from transformers import AutoTokenizer

    with pytest.raises(InputError) as caught:
        hub.patiently("the model user/empty", lambda: AutoTokenizer.from_pretrained("user/empty"))
    assert "the model user/empty" in sentence(caught.value)
    with pytest.raises(InputError, match="lacks the file"):
        from huggingface_hub import hf_hub_download

        hub.patiently("the model user/empty", lambda: hf_hub_download("user/empty", "model.safetensors"))


def test_a_token_is_never_told(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_with a line\x07break")
    with pytest.raises(InputError) as caught:
        hub.revision("user/name")
    assert "hf_with" not in str(caught.value)

    def fails() -> None:
        raise RuntimeError(f"header Authorization: Bearer {TOKEN} was refused\nmore")

    with pytest.raises(RunError) as failed:
        hub.patiently("the model user/name", fails)
    assert "hf_Stand" not in sentence(failed.value)


# Failures that pass: RunError after a few tries


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "drop", "cut", "broken"])
def test_what_passes_is_waited_for(server, fault):
    repo = server.add_repo("model", "user/name", {"config.json": LLAMA_CONFIG})
    server.fail("/api/models", fault, times=2)
    assert hub.revision("user/name") == repo.history[0][0]
    assert server.count("/api/models/user/name") == 3 and server.slept == [1, 3]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (429, "the Hub is limiting requests (429) for the model user/name; wait a few minutes"),
        (500, "the Hub failed (500) on the model user/name"),
        (503, "the Hub failed (503) on the model user/name"),
        ("drop", "the Hub cannot be reached for the model user/name"),
        ("broken", "the Hub's answer about the model user/name was broken"),
    ],
)
def test_what_does_not_pass_ends_with_a_sentence(server, capsys, fault, told):
    server.add_repo("model", "user/name", {"config.json": LLAMA_CONFIG})
    server.fail("/api/models", fault, times=ALWAYS)
    with pytest.raises(RunError) as caught:
        hub.revision("user/name")
    assert sentence(caught.value).startswith(told)
    assert server.count("/api/models/user/name") == 4 and server.slept == list(hub.WAITS)
    assert capsys.readouterr().err.count("trying again in") == 3


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "42"}, {"RateLimit": '"api";r=0;t=42', "RateLimit-Policy": '"api";q=500;w=300'}]
)
def test_the_wait_that_the_hub_asks_for(server, headers):
    server.add_repo("model", "user/name", {})
    server.fail("/api/models", 429, headers=headers)
    hub.revision("user/name")
    assert server.slept == [42]
    server.fail("/api/models", 429, headers={"Retry-After": "3600"})
    with pytest.raises(RunError, match="wait 3600 seconds and go on"):
        hub.revision("user/name")
    assert server.slept == [42]  # an hour is not waited for


def test_a_server_that_hangs(server, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    monkeypatch.setattr(hub, "WAITS", (1,))
    server.add_repo("model", "user/name", {})
    server.fail("/api/models", "slow", times=ALWAYS, seconds=1)
    with pytest.raises(RunError, match="cannot be reached"):
        hub.revision("user/name")


@pytest.mark.parametrize("load", [model.resolve, data.load])
def test_failures_while_loading(server, load):
    server.add_repo("model", "user/name", {"config.json": LLAMA_CONFIG, "model.safetensors": b"weights"})
    repo = server.add_repo("dataset", "user/name", {"train.jsonl": jsonl(sharegpt(5))})
    server.fail("/api/", 503, times=2)
    server.fail("GET .*/resolve/", "cut")
    assert load("user/name").revision in (repo.history[0][0], server.repos["model", "user/name"].history[0][0])


def test_no_network(server, monkeypatch):
    from huggingface_hub import constants

    server.add_repo("model", "user/known", {"config.json": LLAMA_CONFIG})
    folder = hub.snapshot("user/known", hub.revision("user/known"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    for load in (model.resolve, data.load):
        with pytest.raises(RunError) as caught:
            load("user/name")
        assert "the Hub cannot be reached for the" in sentence(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.slept.clear()
    assert hub.snapshot("user/known", hub.revision("user/known")) == folder  # a copy on this machine is as good
    with pytest.raises(RunError, match="unset HF_HUB_OFFLINE"):
        hub.revision("user/name")
    assert not server.slept


@pytest.mark.parametrize("seed", range(3))
def test_a_download_through_a_bad_line(server, tmp_path, seed):
    from huggingface_hub import snapshot_download

    files = {f"part-{n}.{ending}": os.urandom(5000) for n in range(4) for ending in ("json", "safetensors")}
    server.add_repo("model", "user/name", files)
    server.chaos(0.25, seed)
    folder = Path(hub.patiently("the model", lambda: snapshot_download("user/name", local_dir=tmp_path / "got")))
    assert {name: (folder / name).read_bytes() for name in files} == files


# Checkpoints on the Hub


@pytest.fixture
def run_folder(tmp_path):
    """A run with a record and sealed checkpoints, as training leaves them."""
    out = tmp_path / "night"
    out.mkdir()
    (out / "record.json").write_text('{"a": "record"}')
    for step in (10, 20, 30):
        make_checkpoint(out, step)
    return out


def make_checkpoint(out: Path, step: int) -> Path:
    folder = out / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(20_000))
    (folder / "optimizer.pt").write_bytes(os.urandom(20_000))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    checkpoints.seal(folder)
    return folder


def pushed(server: HubServer, repo_id: str = "user/kept") -> set[str]:
    return {path.rpartition("/")[0] for path in server.repos["model", repo_id].files} - {""}


def test_push_and_fetch(server, run_folder, capsys):
    pusher = push.CheckpointPusher("user/kept", run_folder)
    for step in (10, 20, 30):
        began = time.monotonic()
        pusher.push(run_folder / f"checkpoint-{step}")
        assert time.monotonic() - began < 0.5
        shutil.rmtree(run_folder / f"checkpoint-{step}")  # as save_total_limit does, while the upload is under way
        pusher.wait() if step == 20 else pusher.poll()
    pusher.wait()
    assert server.repos["model", "user/kept"].private
    assert pushed(server) == {"night", "night/checkpoint-20", "night/checkpoint-30"}  # the last two
    assert not (run_folder / push.STAGE).exists() and server.leaks == 0
    assert "not pushed" not in capsys.readouterr().out

    elsewhere = run_folder.parent / "another machine" / "night"
    assert push.fetch_last("user/kept", elsewhere) == elsewhere / "checkpoint-30"
    assert checkpoints.last(elsewhere) == elsewhere / "checkpoint-30"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["checkpoint-30", "record.json"]
    assert push.fetch_last("user/kept", run_folder.parent / "other-name") is None


def test_only_whole_checkpoints_are_fetched(server, run_folder, capsys):
    for step in (20, 30):
        push_now(run_folder, step)
    server.repos.get(("model", "user/kept")).files["night/checkpoint-30/optimizer.pt"] = b"half"
    got = run_folder.parent / "new" / "night"
    assert push.fetch_last("user/kept", got) == got / "checkpoint-20"
    assert "checkpoint-30 in user/kept is not whole" in capsys.readouterr().out


def push_now(out: Path, step: int) -> None:
    from huggingface_hub import create_repo

    def work() -> None:
        create_repo("user/kept", private=True, exist_ok=True)
        push.upload("user/kept", out.name, out / f"checkpoint-{step}", out / "record.json")

    hub.patiently("the checkpoint repository", work)


@pytest.mark.parametrize("seed", range(3))
def test_push_and_fetch_through_a_bad_line(server, run_folder, seed):
    server.chaos(0.2, seed)
    for step in (10, 20, 30):
        push_now(run_folder, step)
    assert pushed(server) == {"night", "night/checkpoint-20", "night/checkpoint-30"}
    got = run_folder.parent / "new" / "night"
    assert push.fetch_last("user/kept", got) == got / "checkpoint-30"
    for path in (run_folder / "checkpoint-30").iterdir():
        assert (got / "checkpoint-30" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("fault", [500, 429, "drop"])
def test_a_push_is_tried_again(server, run_folder, capsys, fault):
    pusher = push.CheckpointPusher("user/kept", run_folder)
    server.fail("POST .*/commit/", fault, headers={"Retry-After": "1"})
    pusher.push(run_folder / "checkpoint-10")
    pusher.wait(60)
    assert pushed(server) == {"night", "night/checkpoint-10"} and server.count("POST .*/commit/") == 2
    assert "not pushed" not in capsys.readouterr().out


def test_a_push_that_fails_is_told_and_the_next_one_works(server, run_folder, capsys):
    pusher = push.CheckpointPusher("user/kept", run_folder)
    server.fail("/api/models/user/kept", 403)
    pusher.push(run_folder / "checkpoint-10")
    pusher.wait()
    told = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(told) == 1 and "checkpoint-10 was not pushed to user/kept" in told[0] and "(403)" in told[0]
    assert TOKEN not in told[0]
    pusher.push(run_folder / "checkpoint-20")
    pusher.wait()
    assert pushed(server) == {"night", "night/checkpoint-20"}


def test_a_slow_hub_holds_nothing_up(server, run_folder, capsys):
    pusher = push.CheckpointPusher("user/kept", run_folder)
    server.fail("/commit/", "slow", times=ALWAYS, seconds=60)
    began = time.monotonic()
    for step in (10, 20, 30):
        pusher.push(run_folder / f"checkpoint-{step}")
    assert pusher.waiting.name == "checkpoint-30" and not (run_folder / push.STAGE / "checkpoint-20").exists()
    pusher.wait(3)
    assert time.monotonic() - began < 6
    assert "checkpoint-10 was not pushed" in (told := capsys.readouterr().out) and "more than 3 s" in told
    assert (run_folder / "checkpoint-10").exists() and not (run_folder / push.STAGE).exists()


def test_an_upload_outlives_a_training_that_is_killed(server, run_folder):
    code = f"""
import os, signal, pathlib
from iris.push import CheckpointPusher
out = pathlib.Path({str(run_folder)!r})
CheckpointPusher("user/kept", out).push(out / "checkpoint-10")
os.kill(os.getpid(), signal.SIGKILL)"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    end = time.monotonic() + 60
    while "night/checkpoint-10" not in pushed(server) and time.monotonic() < end:
        server.stopping.wait(0.1)
    assert "night/checkpoint-10" in pushed(server)


def test_a_wrong_name_or_token_is_told_before_training(server, run_folder, monkeypatch, capsys):
    with pytest.raises(InputError, match="is not of the form USER/NAME"):
        push.CheckpointPusher("no-slash", run_folder)
    with pytest.raises(InputError, match="403"):
        push.CheckpointPusher("somebody/else", run_folder)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="refuses your token") as caught:
        push.CheckpointPusher("user/kept", run_folder)
    assert "hf_wrong" not in sentence(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.fail("/api/repos/create", 500, times=ALWAYS)
    monkeypatch.setattr(push, "LONGEST_GREETING", 2)
    push.CheckpointPusher("user/kept", run_folder)  # the Hub is down: training begins all the same
    assert re.search(r"training begins all the same", capsys.readouterr().out)


def test_a_full_machine_does_not_stop_the_training(server, run_folder, monkeypatch, capsys):
    pusher = push.CheckpointPusher("user/kept", run_folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((shutil, "copytree"), (subprocess, "Popen")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, full)
            pusher.push(run_folder / "checkpoint-10")
        assert "checkpoint-10 was not pushed" in capsys.readouterr().out
    pusher.wait()
    assert (run_folder / "checkpoint-10").is_dir()
