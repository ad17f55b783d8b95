"""The Hub, as the real clients see it: a stand-in on loopback that refuses, fails, breaks off and stalls."""

import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hub_server import ALWAYS, TOKEN, HubServer, sentence
from huggingface_hub import constants, hf_hub_download
from transformers import AutoConfig, AutoTokenizer

from iris import InputError, RunError, cli, hub, record
from iris.data import rows, template
from iris.model import load, smollm2
from iris.train import checkpoints

LLAMA_CONFIG = json.dumps({"model_type": "llama"}).encode()


def jsonl(count: int) -> bytes:
    """Rows of ShareGPT's shape."""
    row = '{"conversations": [{"from": "human", "value": "Say %d."}, {"from": "gpt", "value": "It is %d, gladly."}]}\n'
    return "".join(row % (n, n) for n in range(count)).encode()


def test_training_from_the_hub_and_back(server, small_model, tmp_path, capsys):
    """The command itself: a private model and data set, checkpoints kept on the Hub while it trains. It is killed; a
    machine that has nothing fetches the checkpoint and goes on."""
    files = {path.name: path.read_bytes() for path in small_model.iterdir()}
    server.add_repo("model", "user/tiny", files, private=True)
    server.add_repo("dataset", "user/rows", {"train.jsonl": jsonl(40)}, private=True)
    words = ["train", "--model", "user/tiny", "--data", "user/rows"]
    for setting in ("max_length=128", "batch_size=1", "save_steps=5", "push_checkpoints=user/kept"):
        words += ["--set", setting]
    first, other = tmp_path / "a" / "night", tmp_path / "b" / "night"
    command = [sys.executable, "-m", "iris", *words, "--out", first, "--max-steps", "100000"]
    begun, environment = time.monotonic(), os.environ | {"HF_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, env=environment) as training:
        while not any("checkpoint" in name for name in pushed(server)):
            assert training.poll() is None and time.monotonic() - begun < 120
            server.stopping.wait(0.05)
        training.kill()
    kept = record.read(first / "record.json")
    assert kept.model["revision"] == server.repos["model", "user/tiny"].history[0][0]
    assert kept.data["revision"] == server.repos["dataset", "user/rows"].history[0][0]

    step = int(max(pushed(server)).rpartition("-")[2])
    capsys.readouterr()
    assert cli.main([*words, "--out", str(other), "--max-steps", str(step + 5), "--resume"]) == 0
    assert f"checkpoint-{step} was fetched from user/kept" in capsys.readouterr().out and (other / "adapter").is_dir()
    assert record.read(other / "record.json").measures["steps"] == step + 5
    assert pushed(server) == {"night", f"night/checkpoint-{step + 5}"} and server.leaks == 0


@pytest.mark.parametrize("fault", [403, 500, "drop"])
def test_a_file_that_the_hub_fails_to_deliver_is_not_missing(server, smollm2, fault):
    """transformers goes on without tokenizer_config.json where the Hub fails, and makes another tokenizer."""
    files = {path.name: path.read_bytes() for path in smollm2.iterdir() if path.suffix != ".safetensors"}
    repo = server.add_repo("model", "user/name", files)
    server.fail("HEAD .*/tokenizer_config.json", fault, times=20 if fault == 500 else 1)
    commit = repo.history[0][0]
    if fault == 403:
        with pytest.raises(InputError, match="refuses the model user/name .403: Forbidden.; see what your token may"):
            hub.snapshot("user/name", commit)
        return
    folder = hub.snapshot("user/name", commit)
    assert (folder / "tokenizer_config.json").read_bytes() == files["tokenizer_config.json"]
    server.fail("/resolve/.*(json|jinja)$", 500, times=ALWAYS)  # from here on the cache is enough
    told = template.load_tokenizer("user/name", commit)
    assert told.init_kwargs.keys() == template.load_tokenizer(str(smollm2)).init_kwargs.keys()


REFUSALS = {  # what the Hub says, and what helps
    "gated": "(403: Access to this repo is restricted.); it is gated: accept its terms on its page",
    "missing": "(404: Repository not found); check the name",
    401: "check the name, or run `hf auth login`",
    403: "see what your token may do",
    "bad token": "(401: Invalid credentials in Authorization header); check the name, or run `hf auth login`",
}


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("ask", [load.resolve, rows.load])
def test_refusals_are_not_asked_again(server, ask, fault):
    server.fail("/api/(models|datasets)", fault, times=ALWAYS)
    with pytest.raises(InputError) as caught:
        ask("user/name")
    assert REFUSALS[fault] in sentence(caught.value)
    assert server.count("GET /api/(models|datasets)") == 1 and not server.slept


@pytest.mark.parametrize("token", ["", TOKEN])
def test_gated_files_behind_an_open_page(server, monkeypatch, token):
    """What the Hub really does: everyone sees that a gated repository is there, its files are refused."""
    monkeypatch.setenv("HF_TOKEN", token)
    server.add_repo("dataset", "user/rows", {"train.jsonl": jsonl(3)}, gated=True)
    server.add_repo("model", "user/name", {"config.json": LLAMA_CONFIG}, gated=True)
    with pytest.raises(InputError, match="the data set user/rows .* gated"):
        rows.load("user/rows")
    with pytest.raises(InputError, match="the model user/name .*; it is gated: accept its terms"):
        hub.retry("the model user/name", lambda: AutoConfig.from_pretrained("user/name"))


def test_a_repository_without_what_is_needed(server):
    server.add_repo("dataset", "user/empty", {"README.md": b"# Nothing\n"})
    server.add_repo("dataset", "user/broken", {"train.jsonl": b'{"a": 1}\n{"a": \n'})
    server.add_repo("model", "user/empty", {"README.md": b"# Nothing\n"})
    for told, load_it in (
        ("the data set user/empty", lambda: rows.load("user/empty")),
        ("the data set user/broken", lambda: rows.load("user/broken")),
        ("the model user/empty", lambda: AutoTokenizer.from_pretrained("user/empty")),
        ("refuses a.bin of the model user/empty (404: ", lambda: hf_hub_download("user/empty", "a.bin")),
    ):
        with pytest.raises(InputError) as caught:
            hub.retry("the model user/empty", load_it)
        assert told in sentence(caught.value)


def test_a_token_is_never_told(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_with a line\x07break")
    with pytest.raises(InputError) as caught:
        hub.revision("user/name")
    assert "hf_with" not in str(caught.value)

    def fails() -> None:
        raise RuntimeError(f"header Authorization: Bearer {TOKEN} was refused for {TOKEN}\nmore")

    with pytest.raises(RunError) as failed:
        hub.retry("the model user/name", fails)
    assert "hf_Stand" not in sentence(failed.value)


def test_a_home_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("IRIS_HOME", "/dev/null/iris")
    with pytest.raises(InputError, match="nothing can be written to /dev/null/iris; set IRIS_HOME") as caught:
        smollm2.folder()
    sentence(caught.value)


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "drop", "cut", "broken"])
def test_what_passes_is_waited_for(server, fault):
    repo = server.add_repo("model", "user/name", {})
    server.fail("/api/models", fault, times=2)
    assert hub.revision("user/name") == repo.history[0][0]
    assert server.count("/api/models/user/name") == 3 and server.slept == [1, 3]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (429, "the Hub failed on the model user/name (429: Too Many Requests); wait a few minutes"),
        (503, "the Hub failed on the model user/name (503: Service Unavailable); wait a few"),
        ("drop", "the Hub cannot be reached for the model user/name"),
        ("slow", "the Hub cannot be reached for the model user/name"),
        ("broken", "the Hub's answer about the model user/name was broken"),
    ],
)
def test_what_does_not_pass_ends_with_a_sentence(server, capsys, monkeypatch, fault, told):
    if fault == "slow":
        monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    server.add_repo("model", "user/name", {})
    server.fail("/api/models", fault, times=ALWAYS, seconds=1)
    with pytest.raises(RunError) as caught:
        hub.revision("user/name")
    assert sentence(caught.value).startswith(told)
    assert server.slept == list(hub.WAITS) and capsys.readouterr().err.count("trying again in") == 3


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


def test_no_network(server, monkeypatch):
    server.add_repo("model", "user/known", {"config.json": LLAMA_CONFIG})
    folder = hub.snapshot("user/known", hub.revision("user/known"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    for loader in (load.resolve, rows.load):
        with pytest.raises(RunError) as caught:
            loader("user/name")
        assert "the Hub cannot be reached for the" in sentence(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.slept.clear()
    assert hub.snapshot("user/known", hub.revision("user/known")) == folder  # a copy on this machine is as good
    with pytest.raises(RunError, match="unset HF_HUB_OFFLINE"):
        hub.revision("user/name")
    assert not server.slept


@pytest.fixture
def run_folder(tmp_path):
    """A run with a record and sealed checkpoints, as training leaves them."""
    out = tmp_path / "night"
    for step in (10, 20, 30):
        folder = out / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(os.urandom(20_000))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        checkpoints.seal(folder)
    (out / "record.json").write_text('{"a": "record"}')
    return out


def pushed(server: HubServer) -> set[str]:
    repo = server.repos.get(("model", "user/kept"))
    return {path.rpartition("/")[0] for path in repo.files} - {""} if repo else set()


def save(keeper: checkpoints.Keeper, step: int) -> None:
    """What the trainer tells it once checkpoint-`step` is sealed."""
    keeper.on_save(None, SimpleNamespace(global_step=step), None)


def test_checkpoints_are_kept_and_fetched(server, run_folder, capsys):
    """A push that fails is told, and the next ones work, on a Hub with hiccups."""
    keeper = checkpoints.Keeper("user/kept", run_folder)
    server.fail("/api/models/user/kept", 403)
    save(keeper, 10)
    keeper.wait(60)
    told = capsys.readouterr().out.strip()
    assert "checkpoint-10 was not pushed to user/kept" in told and "403" in told
    assert "\n" not in told and TOKEN not in told
    server.chaos(0.2, seed=1)
    for step in (20, 30):
        began = time.monotonic()
        save(keeper, step)
        assert time.monotonic() - began < 0.5
        keeper.wait(60)
        assert pushed(server) == {"night", f"night/checkpoint-{step}"}
    assert server.repos["model", "user/kept"].private
    assert "not pushed" not in capsys.readouterr().out and server.leaks == 0

    elsewhere, other = run_folder.parent / "another machine" / "night", run_folder.parent / "other"
    for folder in (elsewhere, other):
        folder.mkdir(parents=True)
        checkpoints.Keeper("user/kept", folder).fetch()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["checkpoint-30", "record.json"]
    assert checkpoints.last(elsewhere) == elsewhere / "checkpoint-30" and not list(other.iterdir())


def test_a_slow_hub_holds_nothing_up(server, run_folder, capsys):
    keeper = checkpoints.Keeper("user/kept", run_folder)
    server.fail("/commit/", "slow", times=1, seconds=3)
    began = time.monotonic()
    save(keeper, 10)
    server.stopping.wait(0.5)
    shutil.rmtree(run_folder / "checkpoint-10")  # as save_total_limit does, while its upload is under way
    save(keeper, 20)
    save(keeper, 30)
    keeper.wait(0)
    assert time.monotonic() - began < 2.5
    assert "checkpoint-30 was not pushed to user/kept within" in capsys.readouterr().out
    keeper.wait(60)
    titles = [title for _, _, title in server.repos["model", "user/kept"].history]
    assert titles[-2:] == ["night: checkpoint-10", "night: checkpoint-30"]  # the newest in the place of what waited


def test_a_wrong_name_or_token_is_told_before_training(server, run_folder, monkeypatch, capsys):
    with pytest.raises(InputError, match="403"):
        checkpoints.Keeper("somebody/else", run_folder)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="user/kept") as caught:
        checkpoints.Keeper("user/kept", run_folder)
    assert "hf_wrong" not in sentence(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.fail("/api/repos/create", 500, times=ALWAYS)
    checkpoints.Keeper("user/kept", run_folder)  # the Hub is down: training begins all the same
    assert "training begins all the same" in capsys.readouterr().out
