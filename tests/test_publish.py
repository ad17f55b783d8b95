"""`iris publish`, with the real huggingface_hub client against a stand-in for the Hub that refuses, fails, breaks off
and stalls: a repository there is whole, or as it was before."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import evaluations
import pytest
from hub_server import ALWAYS, TOKEN, HubServer, sentence
from huggingface_hub import ModelCard, SpaceCard

from iris import InputError, RunError, hub, record
from iris.cli import main
from iris.export import export
from iris.model import smollm2
from iris.publish import card, page, publish

ROOT = Path(__file__).resolve().parents[1]
REPO, SPACE = "user/smol-poet", "user/poetry-room"
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
META = "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, 2024\n"
STEM = "SmolLM2-135M-Instruct-Iris"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_export(folder: Path, base: str = smollm2.ID, seed: int = 0, vocabulary: int = 49152) -> Path:
    """What `iris export` leaves, in a few kilobytes of noise."""
    noise, name = random.Random(seed), base.rpartition("/")[2]
    local = f"/home/somebody/models/{name}"
    contents = {
        "merged/model.safetensors": noise.randbytes(30_000),
        "merged/config.json": json.dumps({"model_type": "llama", "vocab_size": vocabulary}).encode(),
        "merged/tokenizer.json": b"{}",
        "adapter/adapter_model.safetensors": noise.randbytes(9_000),
        "adapter/adapter_config.json": json.dumps({"base_model_name_or_path": local, "r": 16}).encode(),
        "adapter/README.md": f"---\nbase_model: {local}\n---\n".encode(),
        f"{name}-Iris-F16.gguf": noise.randbytes(30_000),
        f"{name}-Iris-Q4_0.gguf": noise.randbytes(8_000),
        f"{name}-Iris-LoRA.gguf": noise.randbytes(4_000),
        "Modelfile": f"FROM ./{name}-Iris-Q4_0.gguf\n".encode(),
    }
    for file, content in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    result = record.Record(
        kind="export",
        name="poet",
        model={"id": base, "revision": smollm2.REVISION if base == smollm2.ID else None, "digest": "0"},
        status="finished",
        adapter={"path": "adapter", "digest": record.folder_digest(folder / "adapter"), "method": "dora"},
        recipe={"method": "dora", "r": 16, "data": "/home/somebody/verses.jsonl", "target_modules": ["q_proj"]},
        data={"id": "mlabonne/FineTome-100k", "revision": COMMIT, "rows": 12345},
    )
    record.write(result, folder / "record.json")
    export.write_sums(folder)
    return folder


@pytest.fixture
def exported(tmp_path):
    return make_export(tmp_path / "export")


@pytest.fixture
def results(tmp_path, exported):
    """Records of two tasks, with their items: of the base, this adapter and another one."""
    folder, noise = tmp_path / "results", random.Random(0)
    mine = record.folder_digest(exported / "adapter")
    for name, adapter, share in (("base", None, 0.3), ("mine", mine, 0.6), ("other", "f" * 16, 0.9)):
        drawn = [{"value": [float(noise.random() < share) for _ in range(200)]} for _ in range(2)]
        tasks = {"hellaswag": ("acc_norm", True, drawn[0]), "poetry_form": ("keeps", True, drawn[1])}
        tuned = {"path": "/home/somebody/a", "digest": adapter, "method": "dora"} if adapter else None
        evaluations.write(folder / f"{name}.json", tasks, model={"id": smollm2.ID}, adapter=tuned)
    return folder


def push(exported: Path, **options) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Publish, and say what was to be pushed: what a dry run writes, of the model and of the Space."""
    options.setdefault("results", exported / "none")
    publish.publish(exported, REPO, SPACE, **options)
    dry = exported.with_name("dry")
    shutil.rmtree(dry, ignore_errors=True)
    publish.publish(exported, REPO, SPACE, **options, dry_run=dry)
    return read_all(dry / "model"), read_all(dry / "space")


def refused(kind: type[Exception], match: str, ask, *args, **options) -> None:
    """That ask(*args, **options) ends with one sentence."""
    with pytest.raises(kind, match=match) as caught:
        ask(*args, **options)
    sentence(caught.value)


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held(server: HubServer, kind: str, repo_id: str) -> dict[str, bytes]:
    """The files of a repository, without the one that the Hub itself makes."""
    return {name: content for name, content in server.repos[kind, repo_id].files.items() if name != ".gitattributes"}


def assert_whole(server: HubServer, wanted: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    """Both repositories hold what was to be pushed, and the Space reads a model that is there."""
    assert (held(server, "model", REPO), held(server, "space", SPACE)) == wanted
    assert_space_reads_a_whole_model(server)


def assert_space_reads_a_whole_model(server: HubServer) -> None:
    room = json.loads(held(server, "space", SPACE)["room.json"])
    repo, revision, file = re.match(r"(.+)@(.+):(.+)", room["IRIS_MODEL"]).groups()
    _, files = server.repos["model", repo].at(revision)
    sums = dict(reversed(line.split("  ")) for line in files[export.SUMS].decode().splitlines())
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in sums} == sums and file in sums


def test_a_dry_run_is_what_is_pushed(server, exported, results, tmp_path):
    out = tmp_path / "look"
    publish.publish(exported, REPO, SPACE, dry_run=out, results=results)
    assert not server.requests
    publish.publish(exported, REPO, SPACE, results=results)
    for kind, repo_id in (("model", REPO), ("space", SPACE)):
        assert read_all(out / kind) == held(server, kind, repo_id)
        assert server.repos[kind, repo_id].private and len(server.repos[kind, repo_id].history) == 2  # one commit each
        assert subprocess.run(["sha256sum", "-c", "--quiet", export.SUMS], cwd=out / kind).returncode == 0
    assert {path.name for path in (out / "model").iterdir()} == {
        *("README.md", "LICENSE", "SHA256SUMS", "record.json", "Modelfile", "adapter", f"{STEM}-F16.gguf"),
        *("model.safetensors", "config.json", "tokenizer.json", f"{STEM}-Q4_0.gguf", f"{STEM}-LoRA.gguf"),
    }
    assert record.read(out / "model" / "record.json").recipe["data"] == "mlabonne/FineTome-100k"
    config = json.loads((out / "model" / "adapter" / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": smollm2.ID, "r": 16}
    assert b"somebody" not in b"".join(held(server, "model", REPO).values())  # no folder of this machine
    assert server.leaks == 0
    export.check_sums(exported)  # which was only read
    with pytest.raises(InputError, match="not empty"):
        publish.publish(exported, REPO, SPACE, dry_run=out, results=results)


def test_the_card(exported, results, tmp_path):
    publish.publish(exported, REPO, SPACE, dry_run=tmp_path / "dry", results=results)
    card = ModelCard.load(tmp_path / "dry" / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == smollm2.ID
    assert card.data.datasets == ["mlabonne/FineTome-100k"] and card.data.library_name == "transformers"
    mine = record.read(results / "mine.json").tasks
    found = {(one.dataset_type, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found == {
        ("Rowan/hellaswag", "acc_norm"): mine["hellaswag"]["value"],
        ("iris-poetry-form", "keeps"): mine["poetry_form"]["value"],
    }
    measured = "{value:.4f} ± {stderr:.4f}".format(**mine["hellaswag"])
    assert all(said in card.text for said in (measured, "better, clear of noise", "12,345 rows", "user/smol-poet:Q4_0"))
    assert "| other" not in card.text and "Llama" not in card.text and "\n\n\n" not in card.text
    publish.publish(exported, REPO, dry_run=tmp_path / "none", results=tmp_path / "none")
    card = ModelCard.load(tmp_path / "none" / "model" / "README.md")
    assert "Not measured." in card.text and card.data.eval_results is None and "None" not in card.content
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("data", "named", "told"),
    [
        ({"id": "/home/somebody/poems.jsonl", "revision": None}, None, "poems.jsonl"),
        ({"id": "data/poems.jsonl", "revision": "sha256:12"}, None, "poems.jsonl"),
        ({"id": "verses", "revision": None}, None, "Iris' own verses"),
        ({"id": "a/b,data/c.csv", "parts": [{"id": "a/b", "revision": COMMIT}, {"id": "data/c.csv"}]}, ["a/b"],
         "[a/b](https://huggingface.co/datasets/a/b), revision 0123456789, c.csv"),
    ],
)  # fmt: skip
def test_only_data_sets_of_the_hub_are_named(exported, tmp_path, data, named, told):
    result = record.read(exported / "record.json")
    result.data, result.recipe["data"] = data | {"rows": 7}, data["id"]
    record.write(result, exported / "record.json")
    export.write_sums(exported)
    publish.publish(exported, REPO, dry_run=tmp_path / "dry", results=tmp_path)
    card = ModelCard.load(tmp_path / "dry" / "model" / "README.md")
    assert card.data.datasets == named and f"- Data: {told}" in card.text
    public = (tmp_path / "dry" / "model" / "record.json").read_text()
    assert "somebody" not in public and "data/" not in public and "./" not in public


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    """What a dry run writes."""
    folder = tmp_path_factory.mktemp("staged")
    publish.publish(make_export(folder / "export"), REPO, SPACE, dry_run=folder / "dry", results=folder / "none")
    return folder / "dry"


def test_the_space(staged):
    folder = staged / "space"
    said = SpaceCard.load(folder / "README.md").data.to_dict()
    pins = (folder / "requirements.txt").read_text()
    assert (ROOT / "app.py").read_text().endswith((folder / "app.py").read_text())
    assert "torch" not in pins  # ZeroGPU refuses versions that it does not know
    assert (said["sdk"], said["python_version"]) == ("gradio", "3.10.13") and f"=={said['sdk_version']}\n" in pins
    assert (folder / said["app_file"]).exists() and said["models"] == [REPO] and said["license"] == "apache-2.0"
    assert 0 < len(said["short_description"]) <= 60
    assert {said["colorFrom"], said["colorTo"]} <= set("red yellow green blue indigo purple pink gray".split())
    room = json.loads((folder / "room.json").read_text())
    assert re.fullmatch(rf"{REPO}@gguf-[0-9a-f]{{12}}:{STEM}-Q4_0.gguf", room["IRIS_MODEL"])
    assert room["IRIS_BASE"] == "smollm2" and room["IRIS_CARD"].endswith(REPO)


def test_everything_in_the_package_is_installed_with_it():
    """So that nothing needs a clone: each file that is not Python's is named in pyproject.toml."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    source = ROOT / "src"
    globs = ((source / name.replace(".", "/"), kind) for name, kinds in declared.items() for kind in kinds)
    named = {path for folder, kind in globs for path in folder.glob(kind)}
    there = {path for path in (source / "iris").rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert len(there) > 20 and there <= named


def test_a_static_space(server, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "write_engines", lambda folder: folder.mkdir())  # of these two test_page.py knows more
    monkeypatch.setattr(page, "known", lambda model: {})
    with pytest.raises(InputError, match="cannot show a private model.*add --public"):
        publish.publish(exported, REPO, SPACE, hardware="static")
    options = {"hardware": "static", "public": True, "results": tmp_path / "none"}
    publish.publish(exported, REPO, SPACE, dry_run=tmp_path / "dry", **options)
    folder = tmp_path / "dry" / "space"
    said = SpaceCard.load(folder / "README.md").data.to_dict()
    assert said["sdk"] == "static" and (folder / said["app_file"]).exists() and said["models"] == [REPO]
    assert said["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    part = json.loads((folder / "room.json").read_text())["parts"][0]
    assert re.fullmatch(rf"{server.url}/{REPO}/resolve/gguf-[0-9a-f]{{12}}/{STEM}-Q4_0.gguf", part["url"])
    assert part["from"] == 0 and not (folder / "model").exists()
    assert f"connect-src 'self' blob: {server.url} https://*.hf.co" in (folder / "index.html").read_text()
    publish.publish(exported, REPO, SPACE, **options)
    assert server.repos["space", SPACE].sdk == "static"


def test_the_space_runs_on_old_and_new_pythons(staged):
    """No newer syntax and no newer library call than 3.10's, which is the one that ZeroGPU certainly has."""
    files = [str(path) for path in (staged / "space").rglob("*.py")]
    assert len(files) > 10
    for command in (
        ["ruff", "check", "--isolated", "--target-version=py310", "--select=E9,F"],
        ["vermin", "--quiet", "--no-tips", "--target=3.10-", "--violations", "--eval-annotations"],
    ):
        command[0] = str(Path(sys.executable).with_name(command[0]))
        done = subprocess.run([*command, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


FAKE_SPACES = """
import sys
if not hasattr(sys.modules["gradio"], "Blocks"):  # as the real one: Gradio itself must not get it
    raise ImportError
asked = []
def GPU(task):
    asked.append(task.__name__)
    return task
"""


def test_the_space_starts(staged, tmp_path):
    """From its own folder, with the package that is there in a Space on ZeroGPU; test_app.py has it without, and
    writing. Nothing of Iris comes from elsewhere, nothing heavy is read, and its process forgets the token."""
    folder = staged / "space"
    (tmp_path / "spaces.py").write_text(FAKE_SPACES)
    code = f"""
import runpy, sys
from pathlib import Path
sys.path[:] = [{str(folder)!r}, *sys.path, {str(tmp_path)!r}]
runpy.run_path("app.py", run_name="space")
from iris.space.app import open_room
assert sys.modules["spaces"].asked == ["ask_for_gpu"]
open_room(Path("room.json"))
modules = [name for name in sys.modules if name.split(".")[0] == "iris"]
strangers = [name for name in modules if not str(sys.modules[name].__file__).startswith({str(folder)!r})]
assert modules and not strangers, strangers
assert not [name for name in ("torch", "transformers", "peft") if name in sys.modules]
import os
assert {TOKEN!r} not in os.environ.values()
print("it starts", flush=True)
os._exit(0)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IRIS_MODEL", "IRIS_BASE", "PYTHON"))}
    env |= {"IRIS_MODEL": "smollm2", "IRIS_BASE": "smollm2", "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN}
    run = [sys.executable, "-I", "-c", code]
    done = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert "it starts" in done.stdout, done.stderr[-2000:]


def test_what_cannot_be_published_is_told_first(server, exported, tmp_path, monkeypatch):
    options = {"dry_run": tmp_path / "dry"}
    for words in (("poet",), (REPO, "room")):
        refused(InputError, "not of the form USER/NAME", publish.publish, exported, *words, **options)
    for words in (("me/a--b",), ("me/a/b",), (REPO, "mé/a")):
        refused(InputError, "the name .* will not do: .*[Rr]epo.id", publish.publish, exported, *words, **options)
    refused(InputError, "unknown hardware 'gpu'; known: static", publish.publish, exported, REPO, hardware="gpu")
    (exported / "stray.txt").write_text(TOKEN)  # not listed, so never pushed
    publish.publish(exported, REPO, results=tmp_path, **options)
    assert not (tmp_path / "dry" / "model" / "stray.txt").exists()
    with monkeypatch.context() as patched:
        patched.delenv("HF_TOKEN")
        patched.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        refused(InputError, "needs a Hugging Face token", publish.publish, exported, REPO)
    (exported / "Modelfile").write_text("FROM ./another\n")
    refused(RunError, "missing or damaged", publish.publish, exported, REPO)
    assert not server.requests


OLD = META.replace("3.2", "3.1")
LICENCES = [
    (smollm2.ID, 49152, "", "apache-2.0"),
    (LLAMA, 128256, "", "has to travel along; get it with `hf download meta-llama"),
    (LLAMA, 128256, "Apache License", "is not Meta's"),
    (LLAMA, 128256, OLD, "is not Meta's"),
    (LLAMA, 128256, META, "llama3.2"),
    ("Llama-copy", 1000, OLD, "llama3.1"),
    ("somebody/Hermes", 128256, META, "llama3.2"),  # by another name
    ("somebody/TinyLlama-1B", 32000, "", "with its page and give --licence FILE"),
    ("somebody/TinyLlama-1B", 32000, "Do as you like.", "other"),
    ("somebody/TinyLlama-1B", 32000, META, "llama3.2"),  # a Llama after all
]


@pytest.mark.parametrize(("base", "vocabulary", "text", "found"), LICENCES)
def test_the_licence_travels_along(tmp_path, base, vocabulary, text, found):
    file = tmp_path / "LICENSE.txt"
    file.write_text(text) if text else None
    try:
        terms = card.find_licence(base, vocabulary, file)
    except InputError as error:
        assert found in sentence(error)
        return
    assert terms.id == found and terms.files["LICENSE"] == (text.encode() or (ROOT / "LICENSE").read_bytes())
    assert ("NOTICE" in terms.files) == found.startswith("llama") == bool(terms.llama)


def test_the_own_licence_is_found_or_its_absence_told(tmp_path, monkeypatch):
    """An old egg-info names no licence, so that of the clone is taken; with neither nothing empty goes out."""
    old = tmp_path / "iris_poetry_lab.egg-info"
    old.mkdir()
    (old / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: iris-poetry-lab\nVersion: 0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert card.own_licence() == (ROOT / "LICENSE").read_bytes()
    monkeypatch.setattr(card, "__file__", str(tmp_path / "site-packages" / "iris" / "publish" / "card.py"))
    refused(RunError, "licence of Iris is missing", card.own_licence)


def test_a_llama(tmp_path, results):
    exported, file = make_export(tmp_path / "llama", LLAMA, vocabulary=128256), tmp_path / "LICENSE.txt"
    file.write_text(META)
    options = {"dry_run": tmp_path / "dry", "results": results, "licence": file}
    refused(InputError, 'begins with "Llama"', publish.publish, exported, "user/poet-Llama", **options)
    publish.publish(exported, "user/Llama-Poet", SPACE, **options)
    for kind, its_card in (("model", ModelCard), ("space", SpaceCard)):
        folder = tmp_path / "dry" / kind
        assert (folder / "LICENSE").read_text() == META
        assert "Llama 3.2 is licensed under the Llama 3.2 Community License, C" in (folder / "NOTICE").read_text()
        loaded = its_card.load(folder / "README.md")
        assert loaded.data.license == "llama3.2" and "Built with Llama" in loaded.text
        assert "llama3_2/use-policy" in loaded.text
    assert json.loads((tmp_path / "dry" / "space" / "room.json").read_text())["IRIS_BASE"] == ""


def test_a_second_publish_changes_only_what_changed(server, exported, results):
    push(exported, results=exported / "none")
    before = [len(repo.history) for repo in server.repos.values()]
    server.requests.clear()
    push(exported, results=exported / "none")
    assert [len(repo.history) for repo in server.repos.values()] == before and not server.count("PUT /lfs/|/commit/")
    assert_whole(server, push(exported, results=results))  # measured in the meantime
    assert [len(server.repos[key].history) for key in (("model", REPO), ("space", SPACE))] == [3, 2]
    assert not server.count("PUT /lfs/")

    server.repos["model", REPO].files["picture.png"] = b"the user's own"
    (exported / f"{STEM}-F16.gguf").rename(exported / f"{STEM}-[BF16].gguf")
    (exported / f"{STEM}-Q4_0.gguf").write_bytes(b"trained again")
    export.write_sums(exported)
    model, room = push(exported, results=results)
    files = held(server, "model", REPO)
    assert f"{STEM}-F16.gguf" not in files and files.pop("picture.png") == b"the user's own"
    assert files == model and held(server, "space", SPACE) == room
    assert server.count("PUT /lfs/") == 1  # the renamed file was there already
    assert_space_reads_a_whole_model(server)


def test_public_only_when_asked(server, exported):
    push(exported, public=True)
    assert not server.repos["model", REPO].private and not server.repos["space", SPACE].private
    refused(InputError, "is public already", push, exported)


@pytest.mark.parametrize("key", [("model", REPO), ("space", SPACE)])
def test_somebody_elses_work_is_left_alone(server, exported, key):
    server.add_repo(*key, {"README.md": b"mine", "model.safetensors": b"years of work"}, private=True)
    refused(InputError, "did not put there", push, exported)
    assert not server.count("PUT|/commit/|/preupload/")


def test_a_space_that_the_account_may_have(server, exported, capsys):
    for status, told in ((402, "requires a PRO subscription"), (403, "limit of 2 ZeroGPU Spaces")):
        server.forbids["space"] = (status, told)
        refused(InputError, f"{status}: {told}.*may have two Spaces on --hardware zero-a10g", push, exported)
    assert not server.count("PUT|/commit/|/preupload/")
    server.forbids.clear()
    push(exported, hardware="cpu-basic")
    room = server.repos["space", SPACE]
    assert (room.hardware, room.sdk) == ("cpu-basic", "gradio") and b"3.11" in room.files["README.md"]
    capsys.readouterr()
    assert_whole(server, push(exported))
    assert "stays on cpu-basic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "status", "kind", "told"),
    [
        (".", "bad token", InputError, "hf auth login"), ("/api/repos/create", 403, InputError, "(403: no)"),
        ("/commit/", 403, InputError, "(403: no)"), ("PUT /lfs/", 413, InputError, "export smaller quantizations"),
        ("/commit/", 409, RunError, "(409: no)"), ("/commit/", 500, RunError, "(500: no)"),
        ("PUT /lfs/", "drop", RunError, "cannot be reached"),
        ("/objects/batch", 429, RunError, "(429: no); wait 1 seconds"), ("/tag/", 500, RunError, "(500: no)"),
        ("models/.*/commit/", 400, InputError, "(400: no)"), ("/validate-yaml", 400, InputError, "the Hub refuses the"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_and_nothing_is_torn(server, exported, pattern, status, kind, told):
    server.fail(pattern, status, times=ALWAYS, headers={"Retry-After": "1", "X-Error-Message": "no"})
    refused(kind, re.escape(told), push, exported)
    for key in server.repos:
        assert held(server, *key) == {} or (pattern == "/tag/" and key[0] == "model")
    server.heal()
    assert_whole(server, push(exported))  # the same command goes on


def test_a_silent_hub_is_given_up(server, exported, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    server.fail("/commit/|PUT", "slow", times=3, seconds=1)
    assert_whole(server, push(exported))
    assert server.slept  # a new try, not the late answer


@pytest.mark.parametrize(("pattern", "count"), [("PUT /lfs/", 2), ("spaces/.*/commit/", 1)])
def test_an_interrupted_publish_goes_on(server, exported, monkeypatch, pattern, count):
    """Killed, or cut off, at the worst moments (the second file, the Space): the Space is as it was, and the next
    publish sends only what has not arrived."""
    push(exported)
    before = held(server, "space", SPACE)
    make_export(exported, seed=1)
    server.requests.clear()
    real, asked = server.fault_for, []

    def killed(request):
        asked.extend(re.findall(pattern, request))
        if len(asked) >= count:  # from here on nothing arrives
            raise ConnectionAbortedError
        return real(request)

    with monkeypatch.context() as patched:
        patched.setattr(server, "fault_for", killed)
        refused(RunError, "cannot be reached", push, exported)
    arrived = server.count("PUT /lfs/", 200)
    assert held(server, "space", SPACE) == before
    assert_space_reads_a_whole_model(server)
    server.requests.clear()
    assert_whole(server, push(exported))
    assert server.count("PUT /lfs/", 200) == 5 - arrived
    assert all(len(repo.history) == 3 for repo in server.repos.values())


def test_thirty_of_thirty(server, exported, capfd):
    """Fifteen of a hundred requests fail; every publish ends whole, and at no moment is the Space torn."""
    faults = 0
    for seed in range(30):
        server.repos.clear()
        server.large.clear()
        server.requests.clear()
        server.chaos(0.15, seed)
        wanted = push(exported)
        server.heal()
        assert_whole(server, wanted)
        assert [len(repo.history) for repo in server.repos.values()] == [2, 2]
        asked = [f"{path} {status}" for _, path, status in server.requests]  # the Space comes after the whole model
        tagged = asked.index(next(one for one in asked if "/tag/" in one and one[-3:] in ("200", "409")))
        assert not [one for one in asked[:tagged] if "/spaces/" in one and "/commit/" in one]
        assert not [one for one in asked[tagged:] if "/models/" in one and "/commit/" in one]
        faults += sum(status in (0, 412, 429, 500, 502, 503) for _, _, status in server.requests)
    assert faults > 100 and server.leaks == 0
    assert TOKEN not in "".join(capfd.readouterr())


def test_the_way_that_users_have(server, exported, tmp_path):
    """The command itself, large files by hf_xet, which huggingface_hub brings along."""
    env = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_XET"}
    env |= {"HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "iris", "publish", "--export", exported, "--repo", REPO, "--space", SPACE]
    for _ in range(2):
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert all(len(repo.history) == 2 for repo in server.repos.values())
    assert server.count("POST /v1/xorbs/") and not server.count("PUT /lfs/")
    publish.publish(exported, REPO, SPACE, dry_run=tmp_path / "dry")
    assert_whole(server, (read_all(tmp_path / "dry" / "model"), read_all(tmp_path / "dry" / "space")))


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
