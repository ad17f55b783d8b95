"""An exported folder -> the Hub: a model repository, and a Space that recites from it.

Run as: iris publish --export exports/first --repo USER/NAME --space USER/NAME --dry-run look-first

Both are staged in a folder before anything is sent, which is all that a dry run does. Then the order keeps the Space
whole at any moment: the cards are checked and the repositories made, the model goes up in one commit, that commit is
tagged by the GGUF it holds, and last goes the Space, whose room.json names that tag. The same command goes on with what
was broken off: what is there already is not sent again.
"""

import glob
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.utils import validate_repo_id

from .. import InputError, hub, record
from ..export.export import SUMS, check_sums, scratch_beside, smallest, write_sums
from ..model import smollm2
from ..recipe import one_of
from ..record import Record
from . import card
from .page import write_page

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG = "adapter/adapter_config.json"
# What a Space may run on, and the Python that its card asks for: ZeroGPU takes those of its own list only, and a static
# page (page.py) runs in the visitor's browser.
HARDWARE = {"static": "", "zero-a10g": "3.10.13", "cpu-basic": "3.11"}
# What the room needs of Iris; a test holds that it imports nothing else. A Space starts it as app.py here does.
ROOM = "__init__.py hub.py model/__init__.py model/smollm2.py poetry/*.py poetry/*.jsonl space/*.py space/assets/*"
APP = """from pathlib import Path

from iris.space.app import main

if __name__ == "__main__":
    main(Path(__file__).with_name("room.json"))
"""
FREE = "; a free account may have two Spaces on --hardware zero-a10g, and none on cpu-basic"
WAITS = (1, 3, *[9] * 4, *[20] * 6)  # seconds before each new try: hours of uploading are not to be lost


@dataclass(frozen=True)
class Target:
    """A repository of the Hub, of the kind model or space, and the folder that goes into it."""

    kind: str
    repo: str
    folder: Path

    @property
    def what(self) -> str:
        return f"the {'Space' if self.kind == 'space' else 'model'} {self.repo}"

    def ask(self, work: Callable[..., Any], **options: Any) -> Any:
        """What `work`, a method of HfApi, answers about this repository; tried again where that helps."""
        return hub.retry(self.what, partial(work, self.repo, repo_type=self.kind, **options), WAITS)


def publish(
    export: Path,
    repo: str,
    space: str | None = None,
    *,
    hardware: str = "zero-a10g",
    public: bool = False,
    dry_run: Path | None = None,
    results: Path = Path("results"),
    licence: Path | None = None,
) -> None:
    """Push the folder `export` to the model repository `repo`, and the room to `space`, which is made on `hardware`;
    private unless `public`. With `dry_run` write both into that folder instead, and ask the Hub nothing. InputError: a
    name, folder, licence or token that will not do, a repository that holds somebody else's work. RunError: a damaged
    file, a Hub that keeps failing; the same command goes on from there."""
    one_of(hardware, list(HARDWARE), "hardware")
    if space and hardware == "static" and not public:
        raise InputError("a static page cannot show a private model; add --public or take another --hardware")
    for name in filter(None, (repo, space)):
        with hub.translate_errors(f"the name {name}"):
            validate_repo_id(name)
        if "/" not in name:
            raise InputError(f"{name} is not of the form USER/NAME; give the repository's whole name")
    check_sums(export)
    gguf = smallest(export)
    exported = record.read(export / "record.json")
    base = exported.model["id"]
    config = json.loads((export / "merged" / "config.json").read_text(encoding="utf-8"))
    terms = card.find_licence(base, config["vocab_size"], licence)
    if terms.llama and not repo.partition("/")[2].startswith("Llama"):
        raise InputError(f'Llama asks for a name that begins with "Llama": give --repo USER/Llama-..., not {repo}')
    groups = card.evaluations((exported.adapter or {})["digest"], base, results)
    if not groups:
        print(f"no evaluation of this adapter is in {results}: its card says that it was not measured")

    with tempfile.TemporaryDirectory() as scratch:
        model = Target("model", repo, Path(scratch) / "model")
        room = Target("space", space or "", Path(scratch) / "space")
        stage_model(model.folder, export, exported)
        ggufs = {path.name: path.stat().st_size for path in (gguf, *sorted(export.glob("*.gguf")))}
        finish(model.folder, card.model_card(repo, exported, terms, groups, ggufs, space), terms.files)
        tag = f"gguf-{record.digest_of([gguf.name, record.file_digest(gguf)])[:12]}"
        card_url = f"{constants.ENDPOINT}/{repo}"
        if space and hardware == "static":
            room.folder.mkdir()
            write_page(room.folder, gguf, f"{card_url}/resolve/{tag}/{gguf.name}", card_url)
            finish(room.folder, card.write("page.md.jinja", repo=repo, base=base, terms=terms), terms.files)
        elif space:
            other = "smollm2" if base == smollm2.ID else ""  # no other base comes as a GGUF file
            stage_room(room.folder, IRIS_MODEL=f"{repo}@{tag}:{gguf.name}", IRIS_CARD=card_url, IRIS_BASE=other)
            (gradio,) = (each.partition("==")[2] for each in card.requirements() if each.startswith("gradio"))
            told = {"base": base, "terms": terms, "python_version": HARDWARE[hardware], "gradio": gradio}
            finish(room.folder, card.write("space.md.jinja", repo=repo, **told), terms.files)
        if dry_run is not None:
            with scratch_beside(dry_run) as copy:
                shutil.copytree(scratch, copy, dirs_exist_ok=True)
            seen = "" if hardware == "static" else f"; see its room, if any, with python {dry_run}/space/app.py"
            print(f"{dry_run} holds what would be pushed{seen}")
            return

        if not get_token():
            raise InputError("publishing needs a Hugging Face token; run `hf auth login` or set HF_TOKEN")
        targets = [model, room] if space else [model]
        earlier = [claim(target, hardware, public) for target in targets]  # all refusals before anything large is sent
        commit = upload(model, earlier[0])
        model.ask(HfApi().create_tag, tag=tag, revision=commit, exist_ok=True)
        print(f"{constants.ENDPOINT}/{repo} is published, commit {commit[:12]}")
        if space:
            upload(room, earlier[1])
            print(f"{constants.ENDPOINT}/spaces/{space} recites from {gguf.name}")
        for each in targets if public else []:
            each.ask(HfApi().update_repo_settings, private=False)
        if space and not public:
            print("the model is private: give the Space a secret HF_TOKEN that may read it, in its settings")


def stage_model(folder: Path, export: Path, exported: Record) -> None:
    """Link the files of the folder `export` to where they lie in the repository. What names a path of this machine is
    written anew without it: nobody else has its folders."""
    for line in (export / SUMS).read_text(encoding="utf-8").splitlines():  # what is not listed is not ours to push
        name = line.partition("  ")[2]
        target = folder / name.removeprefix("merged/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if name not in ("record.json", CONFIG, "adapter/README.md"):  # the last is PEFT's empty form
            target.symlink_to((export / name).resolve())
    base, sources = exported.model["id"], card.data_sources(exported.data)
    config = json.loads((export / CONFIG).read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    names = ",".join(source["id"] for source in sources)
    recipe = (exported.recipe or {}) | {"model": base, "data": names}
    data = (exported.data or {}) | {"id": names, "parts": sources}
    record.write(replace(exported, recipe=recipe, data=data), folder / "record.json")


def stage_room(folder: Path, **settings: str) -> None:
    """Copy the room and what it imports, with its settings in room.json."""
    for path in (path for pattern in ROOM.split() for path in PACKAGE.glob(pattern)):
        copy = folder / "iris" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (folder / "app.py").write_text(APP, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(card.requirements()) + "\n", encoding="utf-8")
    (folder / "room.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def finish(folder: Path, readme: str, licence: dict[str, bytes]) -> None:
    """The card, the licence, and the checksums of all files, by which a later publish knows its own."""
    (folder / "README.md").write_text(readme, encoding="utf-8")
    for name, text in licence.items():
        (folder / name).write_bytes(text)
    write_sums(folder)


# --- the Hub ----------------------------------------------------------------------------------------------------------


def claim(target: Target, hardware: str, public: bool) -> set[str]:
    """Make the repository where it is not there; returns the files that an earlier publish put there. InputError where
    the account may have none like it, it is public already, or it holds anything else."""
    api, what = HfApi(), target.what
    space: dict[str, Any] = {"space_sdk": "gradio", "space_hardware": hardware} if target.kind == "space" else {}
    if space and hardware == "static":
        space = {"space_sdk": "static"}
    try:
        target.ask(api.create_repo, private=True, exist_ok=True, **space)
    except InputError as error:
        raise InputError(f"{error}{FREE if space else ''}") from None
    info = target.ask(api.repo_info)
    if not (public or info.private):
        raise InputError(f"{what} is public already; add --public, or make it private on its page first")
    if space and info.runtime and info.runtime.requested_hardware not in (None, hardware):
        print(f"{what} stays on {info.runtime.requested_hardware}; its settings page changes that")
    there = {each.rfilename for each in info.siblings or []}
    if SUMS not in there:
        if others := sorted(there - {".gitattributes", "README.md"}):
            raise InputError(f"{what} holds {others[0]}, which `iris publish` did not put there; choose another name")
        return set()
    sums = target.ask(api.hf_hub_download, filename=SUMS, revision=info.sha)
    return there & {line.partition("  ")[2] for line in Path(sums).read_text(encoding="utf-8").splitlines()}


def upload(target: Target, earlier: set[str]) -> str:
    """Put the folder into its repository, in one commit, and take away what only an earlier publish put there. Returns
    the commit."""
    new = {path.relative_to(target.folder).as_posix() for path in target.folder.rglob("*") if path.is_file()}
    gone = [glob.escape(name) for name in sorted(earlier - new)]

    def send(repo_id: str, **options: Any) -> str:
        try:
            return HfApi().upload_folder(repo_id=repo_id, folder_path=target.folder, **options).oid
        except (RuntimeError, TimeoutError) as error:
            if error.__cause__ is None:  # hf_xet says in words only that the line broke
                raise hub.TransientError(f"the upload of {target.what} broke off; publish again, it goes on") from None
            raise

    return target.ask(send, delete_patterns=gone, commit_message="Publish with Iris")
