"""What happened: the one JSON file that every run writes. No torch here; report and compare read it anywhere.

A record states the model, the data, the settings, the results with their standard errors, and the machine. It ends
with a digest of itself, so that a record edited by hand is noticed. Per-item scores lie beside it in
NAME.items.json.gz, so that every table and every test of significance can be recomputed from results/ alone.
"""

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

from . import InputError

SCHEMA = 1
DECISIVE = ("torch", "transformers", "peft", "lm_eval")  # packages whose version may move a score
OTHERS = "trl datasets accelerate bitsandbytes unsloth unsloth_zoo huggingface_hub gguf xllamacpp optuna gradio"


@dataclass
class Record:
    """One run. `tasks` maps a task to {"metric", "value", "stderr", "n", "higher_is_better", "version"}; `measures`
    holds numbers with their unit in the name (tokens_per_s, wall_seconds, peak_memory_gb, ...)."""

    kind: str  # training, evaluation, speed, export
    name: str
    model: dict[str, Any]  # {"id", "revision", "digest"}; of an evaluation {"config", "tokenizer", "template"} as well
    status: str = "running"  # finished, stopped, failed
    adapter: dict[str, Any] | None = None  # {"path", "digest", "method"}; of an evaluation {"kind", "config"} as well
    recipe: dict[str, Any] | None = None
    data: dict[str, Any] | None = None  # {"id", "revision", "rows", "dropped", "fingerprint"}
    settings: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=lambda: environment())
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    note: str = ""
    schema: int = SCHEMA


def digest_of(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """SHA-256 of one file, 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: str | Path) -> str:
    """One digest over the names and contents of the safetensors files in `folder` (not below it)."""
    return digest_of({path.name: file_digest(path) for path in Path(folder).glob("*.safetensors")})


def environment() -> dict[str, Any]:
    """Package versions, Python, platform and the git commit (with whether the tree was clean)."""
    versions = {}
    for package in (*DECISIVE, *OTHERS.split()):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    commit: dict[str, Any] | None = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(Path(__file__).parent), "status", "--porcelain=2", "--branch"]
        told = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        commit = {"commit": told[0].removeprefix("# branch.oid "), "clean": told[-1].startswith("# ")}
    system = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    return {"packages": versions, **system, "cpu_count": os.cpu_count(), "git": commit}


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
    """Write the record as JSON with its digest as the last key. NaN and infinities, which JSON does not know, become
    null: not measured."""
    body = json.loads(json.dumps(asdict(record)), parse_constant=lambda _: None)
    text = json.dumps(body | {"digest": digest_of(body)}, indent=1, ensure_ascii=False)
    write_atomic(path, f"{text}\n".encode())


def read(path: str | Path) -> Record:
    """Read a record. InputError if it is missing, no record, of another schema, or edited by hand."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=int)  # int("NaN") raises
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


def load(folder: Path) -> dict[Path, Record]:
    """The finished, full records of a folder by path, in the order of their names; tells what it leaves out. Of a
    measurement of speed that was cut off each row is finished by itself."""
    found = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        one = read(path)
        if limit := one.settings.get("limit"):
            print(f"left out {path}: limited to {limit} items")
        elif one.status == "finished" or (one.kind, one.status) == ("speed", "stopped"):
            found[path] = one
        else:
            print(f"left out {path}: the run {one.status}")
    return found


def items_path(path: str | Path) -> Path:
    """Where the per-item scores of the record at `path` lie: m-v1.0.json has m-v1.0.items.json.gz."""
    return Path(path).with_name(Path(path).name.removesuffix(".json") + ".items.json.gz")


def write_items(path: str | Path, items: dict[str, dict[str, list[Any]]]) -> None:
    """Write {task: {"id": [...], "value": [...], "weight": [...]}} beside the record at `path`."""
    text = json.dumps(items, separators=(",", ":"), allow_nan=False).encode()
    write_atomic(items_path(path), gzip.compress(text, mtime=0))


def read_items(path: str | Path) -> dict[str, dict[str, list[Any]]]:
    """The per-item scores beside the record at `path`."""
    try:
        return json.loads(gzip.decompress(items_path(path).read_bytes()), parse_constant=int)
    except (OSError, ValueError, EOFError):
        raise InputError(f"{items_path(path)} is missing or damaged; it belongs beside {path}") from None


def peak_memory_gb() -> float:
    """Peak memory so far, in GB (10^9 bytes): allocated on the GPU where this process uses one, else resident."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: its peak is inherited from the parent process
        return round(int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e9, 3)
    if sys.platform == "win32":
        import psutil  # accelerate brings it

        return round(psutil.Process().memory_info().peak_wset / 1e9, 3)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
