"""`iris publish`, with the real huggingface_hub client against a stand-in for the Hub that refuses, fails, breaks off
and stalls: a repository there is whole, or as it was before."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import ALWAYS, TOKEN, HubServer

from iris import embedded, export, hub, publish, record
from iris.cli import main
from iris.errors import InputError, RunError

ROOT = Path(__file__).resolve().parents[1]
REPO, SPACE = "user/smol-poet", "user/poetry-room"
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
META = "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, 2024\n"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The stand-in, with this process's client pointed at it, a cache of its own, and no waiting in real time."""
    from huggingface_hub import constants

    with HubServer() as server:
        for key, value in server.env.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        server.slept = []
        monkeypatch.setattr(time, "sleep", server.slept.append)
        yield server


def make_export(folder: Path, base: str = embedded.ID, seed: int = 0, vocabulary: int = 49152) -> Path:
    """What `iris export` leaves, in a few kilobytes of noise."""
    noise = random.Random(seed)
    stem = f"{base.rpartition('/')[2]}-Iris"
    local = f"/home/somebody/models/{base.rpartition('/')[2]}"
    contents = {
        "merged/model.safetensors": noise.randbytes(30_000),
        "merged/config.json": json.dumps({"model_type": "llama", "vocab_size": vocabulary}).encode(),
        "merged/tokenizer.json": b"{}",
        "adapter/adapter_model.safetensors": noise.randbytes(9_000),
        "adapter/adapter_config.json": json.dumps({"base_model_name_or_path": local, "r": 16}).encode(),
        "adapter/README.md": f"---\nbase_model: {local}\n---\n".encode(),
        f"{stem}-F16.gguf": noise.randbytes(30_000),
        f"{stem}-Q4_0.gguf": noise.randbytes(8_000),
        "Modelfile": f"FROM ./{stem}-Q4_0.gguf\n".encode(),
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    result = record.Record(
        kind="export",
        name="poet",
        model={"id": base, "revision": embedded.REVISION if base == embedded.ID else None, "digest": "0" * 16},
        status="finished",
        adapter={"path": "adapter", "digest": record.folder_digest(folder / "adapter"), "method": "dora"},
        recipe={"method": "dora", "r": 16, "data": "/home/somebody/verses.jsonl", "target_modules": ["q_proj"]},
        data={"id": "mlabonne/FineTome-100k", "revision": "abc", "rows": 12345},
        measures={"bytes_q4_0": 8_000},
    )
    record.write(result, folder / "record.json")
    export.write_sums(folder)
    return folder


@pytest.fixture
def exported(tmp_path):
    return make_export(tmp_path / "export")


def evaluation(results: Path, name: str, adapter: str | None, value: float, base: str = embedded.ID) -> None:
    """A record of two tasks with their items."""
    noise = random.Random(name)
    items, tasks = {}, {}
    for task, metric in (("hellaswag", "acc_norm"), ("poetry_form", "keeps")):
        scores = [float(noise.random() < value) for _ in range(200)]
        items[task] = {"id": list(range(200)), "value": scores}
        entry = {"metric": metric, "value": sum(scores) / 200, "stderr": 0.03, "n": 200, "higher_is_better": True}
        digest = record.digest_of(items[task])
        tasks[task] = entry | {"version": 1.0, "num_fewshot": 0, "items_digest": digest, "others": {}}
    one = record.Record(
        kind="evaluation",
        name=name,
        model={"id": base, "revision": None, "digest": None},
        status="finished",
        adapter={"path": "/home/somebody/a", "digest": adapter, "method": "dora"} if adapter else None,
        settings={"precision": "bf16", "device": "cuda", "batch_size": 32, "num_fewshot": 0},
        tasks=tasks,
    )
    record.write(one, results / f"{name}.json")
    record.write_items(results / f"{name}.json", items)


@pytest.fixture
def results(tmp_path, exported):
    """The base, this adapter and another one, all measured alike."""
    folder = tmp_path / "results"
    evaluation(folder, "base", None, 0.3)
    evaluation(folder, "mine", record.folder_digest(exported / "adapter"), 0.6)
    evaluation(folder, "other", "f" * 16, 0.9)
    return folder


def push(exported: Path, space: str | None = SPACE, **options) -> publish.Contents:
    """Publish, and say what was to be pushed."""
    results = options.setdefault("results", exported / "none")
    publish.publish(exported, REPO, space, **options)
    return publish.prepare(exported, REPO, space, results, None)


def held(server: HubServer, kind: str, repo_id: str) -> dict[str, bytes]:
    """The files of a repository, without the one that the Hub itself makes."""
    return {name: content for name, content in server.repos[kind, repo_id].files.items() if name != ".gitattributes"}


def read_all(files: publish.Files) -> dict[str, bytes]:
    return {name: file.read() for name, file in files.items()}


def assert_whole(server: HubServer, contents: publish.Contents) -> None:
    """Both repositories hold what was to be pushed, and the Space reads a model that is there."""
    assert held(server, "model", REPO) == read_all(contents.model)
    assert held(server, "space", SPACE) == read_all(contents.space)
    assert_space_reads_a_whole_model(server)


def assert_space_reads_a_whole_model(server: HubServer) -> None:
    room = json.loads(held(server, "space", SPACE)["room.json"])
    repo, revision, file = re.match(r"(.+)@(.+):(.+)", room["IRIS_MODEL"]).groups()
    _, files = server.repos["model", repo].at(revision)
    sums = dict(reversed(line.split("  ")) for line in files[export.SUMS].decode().splitlines())
    assert {name: publish.File(files[name]).sha256 for name in sums} == sums and file in sums


def sentence(error: BaseException) -> str:
    """The message, once it is seen to be one sentence without a token or a trace."""
    text = str(error)
    assert "\n" not in text and len(text) < 250 and "Traceback" not in text and "hf_Stand" not in text
    assert ";" in text or ":" in text or "," in text  # what happened, and what to do
    return text


def commits(server: HubServer) -> dict[tuple[str, str], int]:
    return {key: len(repo.history) for key, repo in server.repos.items()}


# What is pushed


def test_a_dry_run_is_what_is_pushed(server, exported, results, tmp_path, capsys):
    out = tmp_path / "dry"
    publish.publish(exported, REPO, SPACE, dry_run=out, results=results)
    assert not server.requests
    publish.publish(exported, REPO, SPACE, results=results)
    for kind, repo_id in (("model", REPO), ("space", SPACE)):
        written = {p.relative_to(out / kind).as_posix(): p.read_bytes() for p in (out / kind).rglob("*") if p.is_file()}
        assert written == held(server, kind, repo_id)
        assert server.repos[kind, repo_id].private and len(server.repos[kind, repo_id].history) == 2  # one commit each
    assert server.repos["space", SPACE].sdk == "gradio"
    assert {path.name for path in (out / "model").iterdir()} == {
        *("README.md", "LICENSE", "SHA256SUMS", "record.json", "Modelfile", "adapter"),
        *("SmolLM2-135M-Instruct-Iris-F16.gguf", "SmolLM2-135M-Instruct-Iris-Q4_0.gguf"),
        *("model.safetensors", "config.json", "tokenizer.json"),
    }
    for kind in ("model", "space"):  # the pushed folder proves itself
        assert subprocess.run(["sha256sum", "-c", "--quiet", export.SUMS], cwd=out / kind).returncode == 0
    assert record.read(out / "model" / "record.json").recipe["data"] == "verses.jsonl"
    config = json.loads((out / "model" / "adapter" / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": embedded.ID, "r": 16}
    assert b"somebody" not in b"".join(held(server, "model", REPO).values())  # no folder of this machine
    assert server.leaks == 0
    with pytest.raises(InputError, match="not empty"):
        publish.publish(exported, REPO, SPACE, dry_run=out, results=results)


def test_the_card(exported, results, tmp_path):
    from huggingface_hub import ModelCard

    publish.publish(exported, REPO, SPACE, dry_run=tmp_path / "dry", results=results)
    card = ModelCard.load(tmp_path / "dry" / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == embedded.ID
    assert card.data.datasets == ["mlabonne/FineTome-100k"] and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    mine = record.read(results / "mine.json").tasks
    found = {(one.dataset_type, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found == {
        ("Rowan/hellaswag", "acc_norm"): mine["hellaswag"]["value"],
        ("Rowan/hellaswag", "acc_norm_stderr"): 0.03,
        ("iris-poetry-form", "keeps"): mine["poetry_form"]["value"],
        ("iris-poetry-form", "keeps_stderr"): 0.03,
    }
    [index] = card.data.to_dict()["model-index"]
    assert index["name"] == "smol-poet" and len(index["results"]) == 2  # a result a data set, its metrics within
    for result in index["results"]:
        assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
        assert all(isinstance(metric["value"], float) and metric["type"] for metric in result["metrics"])
    for said in (
        f"{mine['hellaswag']['value']:.4f} ± 0.0300",
        "**better, clear of noise**",
        "r 16",
        "12,345 rows",
        'model="user/smol-poet"',
        "llama-cli -hf user/smol-poet:Q4_0",
        "ollama run hf.co/user/smol-poet:Q4_0",
        "## Limits",
        "Apache-2.0",
        f"huggingface.co/spaces/{SPACE}",
    ):
        assert said in card.text, said
    assert "other" not in re.findall(r"^\| (\w+)", card.text, re.MULTILINE) and "Llama" not in card.text


def test_a_card_without_measurements(exported, tmp_path, capsys):
    from huggingface_hub import ModelCard

    publish.publish(exported, REPO, dry_run=tmp_path / "dry", results=tmp_path / "none")
    card = ModelCard.load(tmp_path / "dry" / "model" / "README.md")
    assert "Not measured." in card.text and card.data.eval_results is None and "None" not in card.content
    assert "was not measured" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "dry").iterdir()) == ["model"]


def test_the_space(exported, tmp_path):
    from huggingface_hub import SpaceCard

    publish.publish(exported, REPO, SPACE, dry_run=tmp_path / "dry", results=tmp_path / "none")
    folder = tmp_path / "dry" / "space"
    said = SpaceCard.load(folder / "README.md").data.to_dict()
    pin = re.search(r"^gradio.*==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert (said["sdk"], said["sdk_version"], said["python_version"]) == ("gradio", pin, "3.11")
    assert (folder / said["app_file"]).exists() and said["models"] == [REPO] and said["license"] == "apache-2.0"
    assert 0 < len(said["short_description"]) <= 60
    assert said["colorFrom"] in (colours := "red yellow green blue indigo purple pink gray".split())
    assert said["colorTo"] in colours
    room = json.loads((folder / "room.json").read_text())
    assert re.fullmatch(rf"{REPO}@gguf-[0-9a-f]{{12}}:SmolLM2-135M-Instruct-Iris-Q4_0.gguf", room["IRIS_MODEL"])
    assert room["IRIS_BASE"] == "smollm2" and room["IRIS_CARD"].endswith(REPO)


def test_the_space_starts_from_its_own_folder(exported, tmp_path):
    publish.publish(exported, REPO, SPACE, dry_run=tmp_path / "dry", results=tmp_path / "none")
    folder = tmp_path / "dry" / "space"
    code = f"""
import runpy, sys
room = runpy.run_path("app.py", run_name="space")
blocks, options = room["open_room"]()
assert options["mcp_server"]
import iris
strangers = [name for name, module in sys.modules.items() if name.split(".")[0] == "iris"
             and not str(getattr(module, "__file__", "")).startswith({str(folder)!r})]
assert not strangers, strangers
assert not [name for name in ("torch", "transformers", "peft") if name in sys.modules]
blocks.launch(**options | {{"mcp_server": False}}, server_name="127.0.0.1", server_port=0 or None,
              prevent_thread_lock=True, quiet=True)
import urllib.request
assert b"Iris" in urllib.request.urlopen(blocks.local_url, timeout=20).read()
blocks.close()
print("it is open")
import os; sys.stdout.flush(); os._exit(0)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IRIS_MODEL", "IRIS_BASE", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=folder,
        env=env | {"IRIS_MODEL": "smollm2", "IRIS_BASE": "smollm2", "no_proxy": "127.0.0.1,localhost"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "it is open" in done.stdout, done.stderr[-2000:]


def test_a_damaged_or_foreign_folder_is_refused(server, exported, tmp_path):
    def refused(kind, match, *args, **options):
        with pytest.raises(kind, match=match) as caught:
            publish.publish(*args, **options)
        sentence(caught.value)
        assert not server.requests

    refused(InputError, "not of the form USER/NAME", exported, "poet")
    refused(InputError, "not of the form USER/NAME", exported, REPO, "room")
    refused(InputError, "no SHA256SUMS", tmp_path, REPO)
    (exported / "stray.txt").write_text(TOKEN)  # not listed, so never pushed
    assert "stray.txt" not in publish.prepare(exported, REPO, None, tmp_path, None).model
    (exported / "Modelfile").write_text("FROM ./another\n")
    refused(RunError, "is damaged", exported, REPO)


def test_without_a_token(server, exported, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="needs a Hugging Face token"):
        publish.publish(exported, REPO)
    assert not server.requests


# Licences


def test_a_llama(server, tmp_path, results):
    from huggingface_hub import ModelCard, SpaceCard

    exported = make_export(tmp_path / "llama", LLAMA, vocabulary=128256)
    licence = tmp_path / "LICENSE.txt"
    with pytest.raises(InputError, match="has to travel along"):
        publish.publish(exported, "user/Llama-Poet", dry_run=tmp_path / "dry", results=results)
    for text in ("Apache License", META.replace("3.2", "3.1")):
        licence.write_text(text)
        with pytest.raises(InputError, match="not Meta's"):
            publish.publish(exported, "user/Llama-Poet", dry_run=tmp_path / "dry", results=results, licence=licence)
    licence.write_text(META)
    with pytest.raises(InputError, match='begins with "Llama"') as caught:
        publish.publish(exported, "user/poet-Llama", SPACE, dry_run=tmp_path / "dry", results=results, licence=licence)
    sentence(caught.value)
    publish.publish(exported, "user/Llama-Poet", SPACE, dry_run=tmp_path / "dry", results=results, licence=licence)
    notice = (
        "Llama 3.2 is licensed under the Llama 3.2 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
    )
    for kind, card in (("model", ModelCard), ("space", SpaceCard)):
        folder = tmp_path / "dry" / kind
        assert (folder / "LICENSE").read_text() == META and (folder / "NOTICE").read_text() == notice
        loaded = card.load(folder / "README.md")
        assert loaded.data.license == "llama3.2" and "Built with Llama" in loaded.text
        assert "llama3_2/use-policy" in loaded.text
    assert json.loads((tmp_path / "dry" / "space" / "room.json").read_text())["IRIS_BASE"] == ""


@pytest.mark.parametrize("base, vocabulary", [("Llama-3.2-1B-copy", 1000), ("somebody/Hermes", 128256)])
def test_a_llama_by_another_name(tmp_path, base, vocabulary):
    exported = make_export(tmp_path / "export", base, vocabulary=vocabulary)
    (exported / "merged" / "LICENSE.txt").write_text(META)
    with pytest.raises(InputError, match='begins with "Llama"'):
        publish.prepare(exported, REPO, None, tmp_path, None)
    assert publish.prepare(exported, "user/Llama-x", None, tmp_path, None).model["NOTICE"]


def test_another_base_needs_its_licence(tmp_path):
    exported = make_export(tmp_path / "export", "somebody/TinyLlama-1B")
    with pytest.raises(InputError, match="--licence FILE"):
        publish.prepare(exported, REPO, None, tmp_path, None)
    (tmp_path / "L").write_text("Do as you like.")
    model = publish.prepare(exported, REPO, None, tmp_path, tmp_path / "L").model
    assert model["LICENSE"].read() == b"Do as you like." and b"license: other" in model["README.md"].read()
    (tmp_path / "L").write_text(META)  # a Llama after all
    with pytest.raises(InputError, match='begins with "Llama"'):
        publish.prepare(exported, REPO, None, tmp_path, tmp_path / "L")


# The second publish


def test_a_second_publish_makes_no_commit(server, exported, results):
    push(exported, results=results)
    before = commits(server)
    server.requests.clear()
    assert_whole(server, push(exported, results=results))
    assert commits(server) == before and not server.count("PUT /lfs/|/commit/|/preupload/")


def test_a_second_publish_changes_only_what_changed(server, exported, results, tmp_path):
    push(exported, results=exported / "none")
    server.requests.clear()
    assert_whole(server, push(exported, results=results))  # measured in the meantime
    assert [len(server.repos[key].history) for key in (("model", REPO), ("space", SPACE))] == [3, 2]
    assert not server.count("PUT /lfs/")

    server.repos["model", REPO].files["picture.png"] = b"the user's own"
    stem = "SmolLM2-135M-Instruct-Iris"
    (exported / f"{stem}-F16.gguf").rename(exported / f"{stem}-BF16.gguf")
    (exported / f"{stem}-Q4_0.gguf").write_bytes(b"trained again")
    (exported / export.SUMS).unlink()
    export.write_sums(exported)
    contents = push(exported, results=results)
    files = held(server, "model", REPO)
    assert f"{stem}-F16.gguf" not in files and files.pop("picture.png") == b"the user's own"
    assert files == read_all(contents.model) and held(server, "space", SPACE) == read_all(contents.space)
    assert server.count("PUT /lfs/") == 1  # the renamed file was there already
    assert_space_reads_a_whole_model(server)

    (exported / f"{stem}-Q4_0.gguf").rename(exported / "poet-Q4_0.gguf")  # the same bytes, to be found elsewhere
    (exported / export.SUMS).unlink()
    export.write_sums(exported)
    push(exported, results=results)
    assert "poet-Q4_0.gguf" in held(server, "space", SPACE)["room.json"].decode()
    assert_space_reads_a_whole_model(server)


def test_public_only_when_asked(server, exported):
    push(exported, public=True)
    assert not server.repos["model", REPO].private and not server.repos["space", SPACE].private
    with pytest.raises(InputError, match="is public already") as caught:
        push(exported)
    sentence(caught.value)


def test_somebody_elses_work_is_left_alone(server, exported):
    repo = server.add_repo("model", REPO, {"README.md": b"mine", "model.safetensors": b"years of work"}, private=True)
    with pytest.raises(InputError, match="did not put there") as caught:
        push(exported)
    sentence(caught.value)
    assert len(repo.history) == 1 and ("space", SPACE) not in server.repos


# Failures


@pytest.mark.parametrize(
    ("pattern", "status", "kind", "told"),
    [
        (".", "bad token", InputError, "refuses your token"),
        ("/api/repos/create", 401, InputError, "hf auth login"),
        ("/api/repos/create", 403, InputError, "may not use the model user/smol-poet"),
        ("/preupload/", 403, InputError, "may not use"),
        ("/commit/", 403, InputError, "may not use"),
        ("PUT /lfs/", 413, InputError, "larger than the Hub takes"),
        ("/commit/", 413, InputError, "larger than the Hub takes"),
        ("/api/repos/create", 402, InputError, "paid plan"),
        ("/commit/", 409, RunError, "somebody else keeps changing it"),
        ("/commit/", 412, RunError, "somebody else keeps changing it"),
        ("/commit/", 500, RunError, "failed (500)"),
        ("PUT /lfs/", 503, RunError, "failed (503)"),
        ("PUT /lfs/", "drop", RunError, "cannot be reached"),
        ("/objects/batch", 429, RunError, "limiting requests"),
        ("/tag/", 500, RunError, "failed (500)"),
        ("/commit/", 400, RunError, "did not accept"),
    ],
)
def test_a_refusal_is_one_sentence_and_nothing_is_torn(server, exported, capsys, pattern, status, kind, told):
    server.fail(pattern, status, times=ALWAYS, headers={"Retry-After": "1"})
    with pytest.raises(kind, match=re.escape(told)) as caught:
        push(exported)
    sentence(caught.value)
    assert ("space", SPACE) not in server.repos
    assert pattern == "/tag/" or set(held(server, "model", REPO) if server.repos else []) == set()
    server.heal()
    assert_whole(server, push(exported))  # the same command goes on


@pytest.mark.parametrize("pattern", ["/api/repos/create", "/preupload/", "/objects/batch", "PUT /lfs/", "/commit/"])
@pytest.mark.parametrize("status", [409, 412, 429, 500, 503, "drop", "cut"])
def test_what_passes_is_tried_again(server, exported, pattern, status):
    if status in (409, 412) and pattern != "/commit/":
        return  # a race is one of commits
    server.fail(pattern, status, times=2, headers={"Retry-After": "7"})
    assert_whole(server, push(exported))
    assert all(len(repo.history) == 2 for repo in server.repos.values())
    if status == 429:
        assert max(server.slept) >= 7  # as long as the Hub asks


def test_a_long_wait_is_told(server, exported):
    server.fail("/commit/", 429, headers={"Retry-After": "3600"})
    with pytest.raises(RunError, match="wait 3600 seconds") as caught:
        push(exported)
    sentence(caught.value)


def test_a_commit_race(server, exported, monkeypatch):
    from huggingface_hub import HfApi

    races = [{"notes.md": b"by hand"}, {"notes.md": b"by hand, again"}]
    real = HfApi.create_commit

    def raced(self, repo_id, *args, **options):
        if races and repo_id == REPO:  # somebody else is a moment faster
            repo = server.repos["model", REPO]
            repo.commit(repo.files | races.pop(0), "by hand")
        return real(self, repo_id, *args, **options)

    publish.publish(exported, REPO, results=exported / "none")
    monkeypatch.setattr(HfApi, "create_commit", raced)
    make_export(exported, seed=1)
    contents = push(exported)
    files = held(server, "model", REPO)
    assert files.pop("notes.md") == b"by hand, again" and files == read_all(contents.model)
    assert server.count("/commit/", 412) == 2


def test_an_answer_that_is_lost(server, exported):
    server.fail("POST .*/commit/", "cut", times=2)  # committed, but the client does not hear of it
    assert_whole(server, push(exported))
    assert all(len(repo.history) == 2 for repo in server.repos.values())


def test_a_hub_that_is_silent(server, exported, monkeypatch):
    monkeypatch.setattr(publish, "ANSWER", 0.2)
    server.fail("/commit/|PUT", "slow", times=3, seconds=1)
    assert_whole(server, push(exported))
    from huggingface_hub import get_session

    assert get_session().timeout.read is None  # everybody else's client is as it was


def test_a_storage_that_breaks_off_in_words(server, exported, monkeypatch):
    """hf_xet, which the Hub's storage speaks where it is installed, raises a RuntimeError without a cause."""
    from huggingface_hub import HfApi

    real, errors = HfApi.preupload_lfs_files, [RuntimeError("CAS service error"), TimeoutError("no answer")]

    def broken(*args, **options):
        if errors:
            raise errors.pop()
        return real(*args, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", broken)
    assert_whole(server, push(exported))


def test_a_slow_hub(server, exported):
    server.fail(".", "slow", times=10, seconds=0.1)
    assert_whole(server, push(exported))


def test_a_hub_that_loses_what_was_sent(server, exported, monkeypatch):
    from hub_server import Handler

    real = Handler.commit
    push(exported, space=SPACE)
    before = held(server, "space", SPACE)
    make_export(exported, seed=1)

    def torn(self, repo, files):
        real(self, repo, files)
        repo.files["model.safetensors"] = b"half"

    monkeypatch.setattr(Handler, "commit", torn)
    with pytest.raises(RunError, match="does not hold what was sent") as caught:
        push(exported)
    sentence(caught.value)
    assert held(server, "space", SPACE) == before  # the Space still reads the model of before
    assert_space_reads_a_whole_model(server)


@pytest.mark.parametrize("at", ["second file", "commit", "tag", "space"])
def test_an_interrupted_publish_goes_on(server, exported, monkeypatch, at):
    """A kill, at the worst moments: the Space is as it was, and the next publish sends only what has not arrived."""
    push(exported)
    before = held(server, "space", SPACE)
    make_export(exported, seed=1)
    server.requests.clear()
    pattern = {"second file": "PUT /lfs/", "commit": "models/.*/commit/", "tag": "/tag/", "space": "spaces/.*/commit/"}
    left = 2 if at == "second file" else 1
    real = server.fault_for

    def killed(request):
        nonlocal left
        left -= bool(re.search(pattern[at], request))
        if left <= 0:  # from here on nothing of this process arrives
            raise ConnectionAbortedError
        return real(request)

    code = f"""
import sys, time
sys.path[:0] = [{str(ROOT / "src")!r}]
from pathlib import Path
from iris import publish
publish.PATIENCE = ()
publish.publish(Path({str(exported)!r}), {REPO!r}, {SPACE!r}, results=Path("none"))
"""
    monkeypatch.setattr(server, "fault_for", killed)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 180
    while left > 0 and process.poll() is None and time.monotonic() < end:
        server.stopping.wait(0.005)
    process.kill()
    process.wait()
    assert left <= 0
    arrived = server.count("PUT /lfs/", 200)
    assert held(server, "space", SPACE) == before
    assert_space_reads_a_whole_model(server)

    monkeypatch.setattr(server, "fault_for", real)
    server.requests.clear()
    assert_whole(server, push(exported))
    assert server.count("PUT /lfs/", 200) == 4 - arrived
    assert all(len(repo.history) == 3 for repo in server.repos.values())


def test_thirty_of_thirty(server, exported, capfd):
    """Fifteen of a hundred requests fail; every publish ends whole, and at no moment is the Space torn."""
    faults = 0
    for seed in range(30):
        server.repos.clear()
        server.large.clear()
        server.requests.clear()
        server.chaos(0.15, seed)
        contents = push(exported)
        server.heal()
        assert_whole(server, contents)
        assert [len(repo.history) for repo in server.repos.values()] == [2, 2]
        asked = [f"{path} {status}" for _, path, status in server.requests]  # the Space comes after the whole model
        tagged = asked.index(next(one for one in asked if "/tag/" in one and one[-3:] in ("200", "409")))
        assert not [one for one in asked[:tagged] if "/spaces/" in one]
        assert not [one for one in asked[tagged:] if "/models/" in one and "/commit/" in one]
        faults += sum(status in (0, 429, 500, 502, 503) for _, _, status in server.requests)
    assert faults > 100 and server.leaks == 0
    assert TOKEN not in "".join(capfd.readouterr())


# The token


def test_the_token_is_nowhere(server, exported, results, tmp_path, monkeypatch, caplog, capfd):
    """Not in what is printed or logged, not in a folder, a record, a card or a repository, whatever happens."""
    caplog.set_level("DEBUG")
    args = ["publish", "--export", str(exported), "--repo", REPO, "--space", SPACE, "--results", str(results)]
    assert main([*args, "--dry-run", str(tmp_path / "dry")]) == 0
    server.chaos(0.2, 5)
    assert main(args) == 0
    server.heal()
    for status in (401, 403, 500, "bad token"):
        server.fail(".", status, times=ALWAYS)
        assert main(args) == (1 if status == 500 else 2)
        server.heal()
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\n\u00e9")  # one that cannot be sent
    assert main(args) == 2
    said = capfd.readouterr()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    pushed = [content for repo in server.repos.values() for content in repo.files.values()]
    assert len(written) > 50 and len(pushed) > 30
    assert not any(TOKEN.encode() in content for content in written + pushed)
    assert TOKEN not in said.out + said.err + caplog.text
    assert "Traceback" not in said.err
    shutil.rmtree(tmp_path / "dry")


def test_patience_is_longer_than_elsewhere():
    assert len(publish.PATIENCE) > len(hub.WAITS)
