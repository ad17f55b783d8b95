"""Checkpoints that count: a folder checkpoint-N is whole once its manifest, written last, agrees with its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from . import record

MANIFEST = "complete.json"


def seal(folder: Path) -> None:
    """Write the manifest: SHA-256 of every file."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manifest = {path.name: record.file_digest(path) for path in files}
    record.write_atomic(folder / MANIFEST, json.dumps(manifest).encode())


def is_whole(folder: Path) -> bool:
    """Whether every file is there, as it was when the checkpoint was sealed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all(record.file_digest(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def last(out: Path) -> Path | None:
    """The newest whole checkpoint of a run. Half-written ones are told and removed."""
    for folder in sorted(out.glob("checkpoint-*"), key=lambda path: -int(path.name.rsplit("-", 1)[1])):
        if is_whole(folder):
            return folder
        print(f"{folder.name} is incomplete: the run ended while it was written; using the one before", flush=True)
        shutil.rmtree(folder)
    return None
