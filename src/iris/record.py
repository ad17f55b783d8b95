"""What happened: the one JSON file that every run writes. No torch here; report and compare read it anywhere.

A record states the model, the data, the settings, the results with their standard errors, and the machine. It ends
with a digest of itself, so that a record edited by hand is noticed. Per-item scores lie beside it in
NAME.items.json.gz, so that every table and every test of significance can be recomputed from results/ alone.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import InputError

SCHEMA = 1
KINDS = ("training", "evaluation", "speed", "export")
STATUSES = ("running", "finished", "stopped", "failed")
PACKAGES = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "unsloth", "unsloth_zoo"),
    *("lm_eval", "huggingface_hub", "gguf", "xllamacpp", "optuna", "gradio"),
)


@dataclass
class Record:
    """One run. `tasks` maps a task to {"metric", "value", "stderr", "n", "higher_is_better", "version"}; `measures`
    holds numbers with their unit in the name (tokens_per_s, wall_seconds, peak_memory_gb, ...)."""

    kind: str
    name: str
    model: dict[str, Any]  # {"id", "revision", "digest"}
    status: str = "running"
    adapter: dict[str, Any] | None = None  # {"path", "digest", "method"}
    recipe: dict[str, Any] | None = None
    data: dict[str, Any] | None = None  # {"id", "revision", "rows", "dropped", "fingerprint"}
    settings: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=lambda: environment())
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    note: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.status not in STATUSES:
            raise ValueError(f"kind {self.kind!r} or status {self.status!r} is not of {KINDS}, {STATUSES}")


def digest_of(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """SHA-256 of one file, 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: str | Path, patterns: tuple[str, ...] = ("*.safetensors",)) -> str:
    """One digest over the names and contents of the files in `folder` (not below it) that match."""
    files = sorted({path for pattern in patterns for path in Path(folder).glob(pattern)})
    return digest_of({path.name: file_digest(path) for path in files})


def environment() -> dict[str, Any]:
    """Package versions, Python, platform and the git commit (with whether the tree was clean)."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "packages": versions,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    here = Path(__file__).parent

    def run(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return {"commit": run("rev-parse", "HEAD").strip(), "clean": not run("status", "--porcelain").strip()}
    except (OSError, subprocess.SubprocessError):
        return None


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write so that a reader, or a crash, never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.urandom(4).hex()}.partial")  # workers elsewhere may write it as well
    with open(partial, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)


def write(record: Record, path: str | Path) -> None:
    """Write the record as JSON with its digest as the last key."""
    write_atomic(path, as_bytes(asdict(record)))


def as_bytes(body: dict[str, Any]) -> bytes:
    """A record's fields as the JSON that `read` takes, with its digest as the last key."""
    return (json.dumps(body | {"digest": digest_of(body)}, indent=1, ensure_ascii=False) + "\n").encode()


def read(path: str | Path) -> Record:
    """Read a record. InputError if it is missing, no record, of another schema, or edited by hand."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        digest = body.pop("digest")
        schema = body["schema"]
    except FileNotFoundError:
        raise InputError(f"there is no record at {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not an Iris record; give the .json file that a verb wrote") from None
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema}, this Iris reads schema {SCHEMA}; make the record again")
    if digest_of(body) != digest:
        raise InputError(f"{path} was changed after it was written (its digest does not match); make it again")
    return Record(**body)


def items_path(path: str | Path) -> Path:
    """Where the per-item scores of the record at `path` lie."""
    return Path(path).with_suffix("").with_suffix(".items.json.gz")


def write_items(path: str | Path, items: dict[str, dict[str, list[Any]]]) -> str:
    """Write {task: {"id": [...], "value": [...], "weight": [...]}} beside a record; returns its digest."""
    text = json.dumps(items, separators=(",", ":"))
    write_atomic(items_path(path), gzip.compress(text.encode(), mtime=0))
    return digest_of(items)


def read_items(path: str | Path) -> dict[str, dict[str, list[Any]]]:
    """The per-item scores beside the record at `path`."""
    try:
        return json.loads(gzip.decompress(items_path(path).read_bytes()))
    except (OSError, ValueError, EOFError):
        raise InputError(f"{items_path(path)} is missing or damaged; it belongs beside {path}") from None


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far, in GB (10^9 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: its peak is inherited from the parent process
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(peak.split()[1]) * 1024 / 1e9, 3)
    import resource

    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak_bytes * (1 if sys.platform == "darwin" else 1024) / 1e9, 3)
