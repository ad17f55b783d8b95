"""Checkpoints that count: a folder checkpoint-N is whole once its manifest, written last, agrees with its files. They
may be kept on the Hub as well, so that a lost machine loses no training."""

import json
import os
import shutil
import tempfile
import threading
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import disable_progress_bars
from transformers import TrainerCallback

from .. import InputError, RunError, record
from ..hub import retry

MANIFEST = "complete.json"


def seal(folder: Path) -> None:
    """Write the manifest: SHA-256 of every file."""
    manifest = {path.name: record.file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    record.write_atomic(folder / MANIFEST, json.dumps(manifest).encode())


def last(out: Path) -> Path | None:
    """The newest checkpoint of a run whose files are as they were sealed. Half-written ones are told and removed."""
    for folder in sorted(out.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if all(record.file_digest(folder / name) == digest for name, digest in manifest.items()):
                return folder
        except (OSError, ValueError):
            pass
        print(f"{folder.name} is incomplete: the run ended while it was written; using the one before", flush=True)
        shutil.rmtree(folder)
    return None


class Keeper(TrainerCallback):
    """Keeps the newest checkpoint of the run in `out` in a private repository of the Hub, RUN/checkpoint-N with
    RUN/record.json in one commit (transformers' own `push_to_hub` uploads before a checkpoint is sealed). InputError if
    the repository or the token is refused; what fails later is told, and training goes on."""

    def __init__(self, repo_id: str, out: Path) -> None:
        self.repo_id, self.out, self.what = repo_id, out, f"the checkpoint repository {repo_id}"
        self.newest, self.one_at_a_time = Path(), threading.Lock()
        self.thread: threading.Thread | None = None
        try:
            retry(self.what, partial(HfApi().create_repo, repo_id, private=True, exist_ok=True))
        except RunError as error:
            print(f"{error}; training begins all the same, and every checkpoint tries again", flush=True)

    def fetch(self) -> None:
        """Bring record and checkpoint of the run named as `out` from the Hub into `out`, if it has any there.
        InputError or RunError if the Hub says no."""
        with tempfile.TemporaryDirectory(dir=self.out) as scratch:
            wanted = f"{escape(self.out.name)}/*"
            retry(self.what, partial(snapshot_download, self.repo_id, allow_patterns=wanted, local_dir=scratch))
            for path in sorted(Path(scratch, self.out.name).glob("*")):  # the record last: without it, again
                os.replace(path, self.out / path.name)
                print(f"{path.name} was fetched from {self.repo_id}", flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = self.out / f"checkpoint-{state.global_step}"
        if folder.exists():  # else it could not be saved, which was told
            self.newest = folder
            self.thread = threading.Thread(target=self.upload, args=(folder,), daemon=True)
            self.thread.start()

    def upload(self, folder: Path) -> None:
        """Upload a sealed checkpoint, unless a newer one is there by the time that the upload before has ended."""
        disable_progress_bars()  # there is one of the training
        with self.one_at_a_time, tempfile.TemporaryDirectory() as scratch:
            if folder != self.newest:
                return
            try:
                staged = Path(scratch, self.out.name)  # a copy, as save_total_limit removes checkpoints meanwhile
                shutil.copytree(folder, staged / folder.name)
                shutil.copy(self.out / "record.json", staged)
                options = {"repo_id": self.repo_id, "folder_path": scratch}
                options["delete_patterns"] = f"{escape(self.out.name)}/checkpoint-*"
                options["commit_message"] = f"{self.out.name}: {folder.name}"
                retry(self.what, partial(HfApi().upload_folder, **options))
            except (OSError, InputError, RunError) as error:
                print(f"\n{folder.name} was not pushed to {self.repo_id}, it is kept in {self.out} only ({error})")

    def wait(self, seconds: float) -> None:
        """Let the last upload end, for so many seconds at most."""
        if self.thread:
            self.thread.join(max(1.0, seconds))
        if self.thread and self.thread.is_alive():
            print(f"{self.newest.name} was not pushed to {self.repo_id} within {seconds:.0f} s", flush=True)
