"""An exported folder -> the Hub: a model repository, and a Space that recites from it.

What is pushed is decided before anything is sent (`prepare`), so that --dry-run writes the very same bytes. The order
keeps the Space whole at any moment: the model in one commit, its checksums read back, a tag named after the GGUF, and
last, in one commit, the Space, whose room.json names that tag. Every step first looks at what is there: a second
publish sends only what changed, and one that was broken off goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import embedded, hub, hub_card, record
from .errors import InputError, RunError
from .export import SUMS, check_room, check_sums, check_target, scratch_beside
from .hub import PassingError
from .hub_card import Licence
from .merge import read_json

if TYPE_CHECKING:
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi

HOME = Path(__file__).resolve().parents[2]
ROOM = ("requirements.txt", "assets/*", "src/iris/poetry/verses.jsonl")  # what the page needs beside modules
LLAMA = re.compile(r"(?<![a-z])llama")  # in a model's id; TinyLlama is another family
LLAMA_3_WORDS = 128256  # a model with this vocabulary descends from Llama 3, whatever it is called
LLAMA_LICENCE = re.compile(r"llama\s+(\d(?:\.\d)?)\s+community\s+license", re.IGNORECASE)
NOTICE = (
    "Llama {} is licensed under the Llama {} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)
PATIENCE = (1, 3, 9, 9, 9, 20, 20, 20, 20)  # seconds before each new try: hours of uploading are not to be lost
ROUNDS = 6  # times that the repository is looked at, before somebody else's commits are too many
ANSWER = 120  # seconds of silence after which a connection is given up


@dataclass(frozen=True)
class File:
    """What a file of a repository holds, and its SHA-256."""

    content: Path | bytes
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.read()).hexdigest())

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


Files = dict[str, File]  # by path in the repository


@dataclass(frozen=True)
class Contents:
    """What is pushed. `space` is empty if none was asked for; `gguf` is the file that the Space recites from, `tag`
    the name of the model's commit that it reads."""

    model: Files
    space: Files
    gguf: str
    tag: str


def publish(
    export: Path,
    repo: str,
    space: str | None = None,
    public: bool = False,
    dry_run: Path | None = None,
    results: Path = Path("results"),
    licence: Path | None = None,
) -> None:
    """Push the folder `export` to the model repository `repo`, and the room to `space`; private unless `public`.
    With `dry_run` write both into that folder instead, and ask the Hub nothing.

    InputError: a name, folder, licence or token that will not do, a repository that holds somebody else's work.
    RunError: a damaged file, a Hub that keeps failing; the same command goes on from there."""
    contents = prepare(export, repo, space, results, licence)
    if dry_run is not None:
        _write(contents, dry_run)
        return
    from huggingface_hub import HfApi, constants, get_token

    if not get_token():
        raise InputError("publishing needs a Hugging Face token; run `hf auth login` or set HF_TOKEN")
    with _client_that_gives_up():
        api = HfApi()
        what = f"the model {repo}"
        commit = _push(api, "model", repo, contents.model, public, what)
        _patiently(what, partial(api.create_tag, repo, tag=contents.tag, revision=commit, exist_ok=True))
        _check_tag(api, repo, contents, what)
        print(f"{constants.ENDPOINT}/{repo} holds {len(contents.model)} files, commit {commit[:12]}")
        if space:
            commit = _push(api, "space", space, contents.space, public, f"the Space {space}")
            print(f"{constants.ENDPOINT}/spaces/{space} recites from {contents.gguf}, commit {commit[:12]}")
            if not public:
                print("the model is private: give the Space a secret HF_TOKEN that may read it, in its settings")


def prepare(export: Path, repo: str, space: str | None, results: Path, licence: Path | None) -> Contents:
    """Everything that is to be pushed, from an exported folder. Raises what `publish` does."""
    for name in filter(None, (repo, space)):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise InputError(f"{name} is not of the form USER/NAME; give the repository's whole name")
    if not (HOME / "app.py").exists():
        raise InputError("iris publish needs Iris' own folder, with app.py in it; install with `pip install -e`")
    check_sums(export)
    exported = record.read(export / "record.json")
    if exported.kind != "export" or exported.status != "finished":
        raise InputError(f"{export} holds a {exported.status} {exported.kind}; give the folder `iris export` wrote")
    terms = _licence(export, exported.model["id"], licence)
    if terms.llama and not repo.partition("/")[2].startswith("Llama"):
        raise InputError(
            f'Llama\'s licence wants a name that begins with "Llama"; give --repo USER/Llama-..., not {repo}'
        )
    model: Files = {}
    for line in (export / SUMS).read_text(encoding="utf-8").splitlines():  # what is not listed is not ours to push
        digest, _, name = line.partition("  ")
        if name != "adapter/README.md":  # PEFT's empty form
            model[name.removeprefix("merged/")] = File(export / name, digest)
    model["record.json"] = File(record.as_bytes(_without_paths(asdict(exported))))
    config = read_json(export / "adapter" / "adapter_config.json") | {"base_model_name_or_path": exported.model["id"]}
    model["adapter/adapter_config.json"] = File(json.dumps(config, indent=2, sort_keys=True).encode())
    ggufs = {
        name: file.size for name, file in sorted(model.items(), key=lambda item: item[1].size) if name[-5:] == ".gguf"
    }
    gguf = next(iter(ggufs))
    groups = hub_card.evaluations((exported.adapter or {})["digest"], exported.model["id"], results)
    if not groups:
        print(f"no evaluation of this adapter is in {results}: its card says that it was not measured")
    card = hub_card.model_card(repo, exported, terms, groups, ggufs, space)
    tag = f"gguf-{record.digest_of([gguf, model[gguf].sha256])[:12]}"
    room = _room(repo, tag, gguf, exported.model["id"], terms) if space else {}
    return Contents(_complete(model, card, terms), room, gguf, tag)


def _room(repo: str, tag: str, gguf: str, base: str, terms: Licence) -> Files:
    """The Space: the page, what of Iris it imports, and which model it reads."""
    from huggingface_hub import constants

    finder = ModuleFinder(path=[str(HOME / "src")])
    finder.run_script(str(HOME / "app.py"))  # which reads it, and runs nothing
    modules = [Path(file) for module in finder.modules.values() if (file := getattr(module, "__file__", None))]
    found = [*modules, *(path for pattern in ROOM for path in HOME.glob(pattern) if path.is_file())]
    files = {path.relative_to(HOME).as_posix(): File(path.read_bytes()) for path in found}
    room = {"IRIS_MODEL": f"{repo}@{tag}:{gguf}", "IRIS_CARD": f"{constants.ENDPOINT}/{repo}"}
    room["IRIS_BASE"] = "smollm2" if base == embedded.ID else ""  # no other base comes as a GGUF file
    files["room.json"] = File((json.dumps(room, indent=1) + "\n").encode())
    pin = re.search(r"^gradio(?:\[.*?\])?==(\S+)", files["requirements.txt"].read().decode(), re.MULTILINE)
    if pin is None:
        raise RunError("requirements.txt pins no gradio, so the Space's sdk_version is unknown; mend that line")
    return _complete(files, hub_card.space_card(repo, base, terms, pin[1]), terms)


def _complete(files: Files, card: str, terms: Licence) -> Files:
    """With the card, the licence, and the checksums of all files, by which a later publish knows its own."""
    files = files | {name: File(content) for name, content in terms.files.items()} | {"README.md": File(card.encode())}
    sums = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files) if name != SUMS)
    return dict(sorted((files | {SUMS: File(sums.encode())}).items()))


def _licence(export: Path, base: str, given: Path | None) -> Licence:
    """The terms of the base, which are those of what was made from it. InputError if their text is not here."""
    llama = LLAMA.search(base.lower()) or read_json(export / "merged" / "config.json")["vocab_size"] == LLAMA_3_WORDS
    if "smollm" in base.lower() and not llama:
        return Licence("apache-2.0", "Apache-2.0, as its base", {"LICENSE": (HOME / "LICENSE").read_bytes()})
    trained_on = read_json(export / "adapter" / "adapter_config.json").get("base_model_name_or_path") or base
    folders = (export, export / "merged", Path(trained_on))
    here = [folder / name for folder in folders for name in ("LICENSE", "LICENSE.txt") if (folder / name).is_file()]
    file = given or next(iter(here), None)
    try:
        text = file.read_bytes() if file else b""
    except OSError as error:
        raise InputError(f"the licence {file} cannot be read ({error.strerror}); give another file") from None
    if not text:
        how = f"`hf download {base} LICENSE.txt`" if llama else "its page"
        raise InputError(f"the licence of {base} has to travel along; get it with {how} and give --licence FILE")
    version = LLAMA_LICENCE.search(text.decode(errors="replace"))
    if not (llama or version):
        return Licence("other", "As its base", {"LICENSE": text})
    named = re.search(r"llama-(\d\.\d)", base.lower())
    if version is None or (named and named[1] != version[1]):
        raise InputError(f"{file} is not Meta's community licence of {base}; give that with --licence")
    notice = NOTICE.format(version[1], version[1])
    name = f"Llama {version[1]} Community License"
    return Licence(f"llama{version[1]}", name, {"LICENSE": text, "NOTICE": f"{notice}\n".encode()}, version[1])


def _without_paths(value: Any) -> Any:
    """The same, with the folders of this machine taken off; nobody else has them."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _write(contents: Contents, out: Path) -> None:
    """The dry run. InputError or RunError if there is no place for it."""
    check_target(out)
    check_room(out, sum(file.size for file in contents.model.values()))
    with scratch_beside(out) as scratch:
        for folder, files in (("model", contents.model), ("space", contents.space)):
            for name, file in files.items():
                (scratch / folder / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file.content, bytes):
                    (scratch / folder / name).write_bytes(file.content)
                else:
                    shutil.copyfile(file.content, scratch / folder / name)
    print(f"{out} holds what would be pushed, {len(contents.model) + len(contents.space)} files")
    if contents.space:
        print(f"see the room with IRIS_MODEL={out / 'model' / contents.gguf} python {out / 'space' / 'app.py'}")


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _patiently(what: str, work: Any) -> Any:
    return hub.patiently(what, work, PATIENCE)


@contextmanager
def _client_that_gives_up() -> Iterator[None]:
    """huggingface_hub's own client waits for a silent server for ever."""
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx.Client:
        made = default_client_factory()
        made.timeout = httpx.Timeout(ANSWER, connect=hub.TIMEOUT)
        return made

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _look(api: HfApi, kind: str, repo: str, what: str, revision: str | None = None) -> Any:
    """A repository's commit, visibility and files with their checksums."""
    ask = partial(api.repo_info, repo, repo_type=kind, revision=revision, files_metadata=True, timeout=hub.TIMEOUT)
    return _patiently(what, ask)


def _push(api: HfApi, kind: str, repo: str, files: Files, public: bool, what: str) -> str:
    """Bring the repository, made here if there is none, to hold `files`, in one commit or, if it does already, in none;
    returns the commit. It is looked at again after the commit: what counts is what the Hub says it holds, not that it
    took what was sent. It becomes public, if it is to, when it is whole.

    InputError if it holds files that no publish put there, or is public and was not to be. RunError if it never holds
    what was sent."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    sdk = "gradio" if kind == "space" else None
    _patiently(what, partial(api.create_repo, repo, repo_type=kind, space_sdk=sdk, private=True, exist_ok=True))
    for _ in range(ROUNDS):
        info = _look(api, kind, repo, what)
        if not (public or info.private):
            raise InputError(f"{what} is public already; add --public, or make it private on its page first")
        there = {entry.rfilename: entry for entry in info.siblings or []}
        old = _of_ours(api, kind, repo, info.sha, set(there), what) - files.keys()
        changed = [name for name, file in files.items() if not _is_same(file, there.get(name))]
        if not changed and not old:
            if public and info.private:
                _patiently(what, partial(api.update_repo_settings, repo, repo_type=kind, private=False))
            return str(info.sha)
        adds = []
        for name in changed:
            adds.append(CommitOperationAdd(name, files[name].content))
            adds[-1].upload_info.sha256 = bytes.fromhex(files[name].sha256)  # else large files are read once more
        _patiently(what, partial(_upload, api, kind, repo, adds))
        operations: list[Any] = [*adds, *(CommitOperationDelete(name) for name in sorted(old))]
        _patiently(what, partial(_commit, api, kind, repo, operations, info.sha))
    raise RunError(f"{what} does not hold what was sent, or somebody else keeps changing it; publish again in a while")


def _of_ours(api: HfApi, kind: str, repo: str, commit: str, there: set[str], what: str) -> set[str]:
    """Which of the files that are there an earlier publish put there."""
    if SUMS not in there:
        if others := sorted(there - {".gitattributes", "README.md"}):
            raise InputError(f"{what} holds {others[0]}, which `iris publish` did not put there; choose another name")
        return set()
    fetch = partial(api.hf_hub_download, repo, SUMS, repo_type=kind, revision=commit)
    lines = Path(_patiently(what, fetch)).read_text(encoding="utf-8").splitlines()
    return there & {line.partition("  ")[2] for line in lines}


def _is_same(file: File, entry: Any) -> bool:
    """Whether the Hub's entry of a file, None if there is none, has this content."""
    if entry is None or entry.size != file.size:
        return False
    if entry.lfs:
        return bool(entry.lfs.sha256 == file.sha256)
    content = file.read()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def _upload(api: HfApi, kind: str, repo: str, adds: list[CommitOperationAdd]) -> None:
    """Send the large files. Those that have arrived, now or in an earlier try, are not sent again."""
    try:
        api.preupload_lfs_files(repo, adds, repo_type=kind, free_memory=False)
    except (RuntimeError, TimeoutError) as error:
        if error.__cause__ is None:  # hf_xet says in words only that the line broke
            raise PassingError(f"the upload to {repo} broke off; publish again, it goes on from there") from None
        raise


def _commit(api: HfApi, kind: str, repo: str, operations: list[Any], head: str) -> None:
    """Commit on top of `head`. Where that is no longer the newest (somebody else's commit, or this one, whose answer
    was lost) nothing is done: the caller looks again."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_commit(repo, operations, commit_message="Publish with Iris", repo_type=kind, parent_commit=head)
    except HfHubHTTPError as error:
        if error.response.status_code not in (409, 412):
            raise
        time.sleep(hub.WAITS[0])


def _check_tag(api: HfApi, repo: str, contents: Contents, what: str) -> None:
    """RunError if the Space would not find its GGUF, whole, under the tag."""
    entries = {entry.rfilename: entry for entry in _look(api, "model", repo, what, contents.tag).siblings}
    if not _is_same(contents.model[contents.gguf], entries.get(contents.gguf)):
        raise RunError(f"{what} has another {contents.gguf} under its tag {contents.tag}; delete that tag on the Hub")
