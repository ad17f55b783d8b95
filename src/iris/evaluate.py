"""Scores of a model, with or without an adapter, on lm-eval's tasks: run in a fresh process, kept as a record.

The four benchmarks are lm-eval's own, zero-shot and without chat template, as the seed lab ran them; the poetry tasks
(poetry/tasks/) use the model's own chat template. A finished task is kept beside the record in NAME.parts/ and used
again, by any record of the same folder, where model, adapter, data, versions and settings are the same.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import benchmarks, chat, record
from .errors import InputError, RunError
from .recipe import PRECISIONS, one_of

if TYPE_CHECKING:
    from .model import Source

# The metric of a task that tables show; a record keeps all of them.
METRIC = {
    "hellaswag": "acc_norm",
    "arc_challenge": "acc_norm",
    "mmlu_stem": "acc",
    "truthfulqa_mc2": "acc",
    "poetry_verses": "bits_per_byte",
    "poetry_form": "keeps",
}
GROUPS = {"poetry": ("poetry_verses", "poetry_form")}
SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's own defaults
DECISIVE = ("torch", "transformers", "peft", "lm_eval")  # packages whose version may move a score
BATCH_SIZE = {"cpu": 16, "cuda": 1024}  # continuations (fewer where they are long), or poems


def evaluate(
    model: str,
    adapter: str | Path | None,
    tasks: list[str],
    out: str | Path,
    limit: int | None = None,
    data_dir: str | Path | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    processes: int = 1,
) -> record.Record:
    """Evaluate `model` (alias, Hub id, folder or exported GGUF) and write the record to `out` (NAME.json), its items
    beside it. Of a GGUF the weights are scored as they are written, unpacked: transformers computes with them in
    `precision`, where llama.cpp rounds the activations as well (quality.py measures that).

    `tasks` are names of METRIC or GROUPS. `limit` scores the first so many items of a task (of each subject of
    mmlu_stem). `data_dir` holds local copies of the benchmarks. Precision "auto" is fp32 on a CPU, else bf16 or fp16.
    `processes` share the items, one a GPU. InputError for what the caller can mend, RunError if the process fails;
    finished tasks are kept then.
    """
    from . import hardware
    from .model import resolve, resolve_gguf

    names, out = _expand(tasks), Path(out)
    _check_out(out)
    for name, number in (("--limit", limit), ("--batch-size", batch_size)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, not {number}")
    if processes < 1 or (limit or processes) < processes:
        raise InputError(f"--gpus {processes} needs at least one item of every task for each; raise --limit")
    one_of(precision, PRECISIONS, "precision")
    data = {name: _data_digest(data_dir, name) for name in names}
    begin = time.monotonic()
    with _lm_eval(processes) as process:  # which reads its packages, as this one reads torch, beside the digest
        threading.Thread(target=hardware.device, daemon=True).start()
        source = resolve_gguf(Path(model)) if model.endswith(".gguf") else resolve(model)
        device = hardware.device()
        if precision == "auto" and device == "cpu":
            precision = "fp32"  # where nothing is learned, exact scores are worth more than speed
        settings: dict[str, Any] = {
            "precision": hardware.precision(precision),
            "device": device,
            "batch_size": batch_size or BATCH_SIZE[device],
            "limit": limit,
            "num_fewshot": 0,
            "chat_template": "poetry tasks only",
            "seeds": SEEDS,
        }
        adapted = _check_adapter(Path(adapter), source) if adapter else None
        result = record.Record("evaluation", out.stem, source.as_dict(), adapter=adapted, settings=settings)

        versions = {name: metadata.version(name) for name in DECISIVE}
        common = [result.model, adapted and adapted["digest"], settings, versions]
        parts: dict[str, Path] = {}
        waiting = []
        for name in names:
            poetry = name.startswith("poetry")
            key = record.digest_of([name, data[name], _code_digest(name), *common])
            parts[name] = out.with_suffix(".parts") / f"{name}-{key}.json.gz"
            known = sorted(out.parent.glob(f"*.parts/{name}-{key}.json.gz"))
            if known:
                parts[name] = known[0]
                print(f"{name}: already measured with the same model, data, versions and settings", file=sys.stderr)
            else:
                waiting.append({"name": name, "part": str(parts[name]), "chat_template": poetry})
        if waiting:
            job: dict[str, Any] = {"model_args": _model_args(source, adapter, settings["precision"]), "tasks": waiting}
            job |= {
                "device": device,
                "batch_size": settings["batch_size"],
                "limit": limit,
                "data_dir": str(data_dir) if data_dir else None,
            }
            result.measures["peak_memory_gb"] = _run(process, job)
    result.measures["wall_seconds"] = round(time.monotonic() - begin, 2)
    result.environment |= {"device": hardware.device_name(), "processes": processes}

    items = {}
    for name in names:
        part = _read_part(parts[name])
        items[name] = _columns(part["items"], METRIC[name])
        result.tasks[name] = _task_entry(part, METRIC[name], record.digest_of(items[name]))
        result.environment["lm_eval"] = part["lm_eval"]
    record.write_items(out, items)
    result.status = "finished"
    record.write(result, out)
    return result


def _expand(tasks: list[str]) -> list[str]:
    known = [*METRIC, *GROUPS]
    names = [name for task in tasks for name in GROUPS.get(one_of(task, known, "task"), (task,))]
    if not names:
        raise InputError(f"name at least one task: {', '.join(known)}")
    return list(dict.fromkeys(names))


def _check_out(out: Path) -> None:
    if out.suffix != ".json":
        raise InputError(f"--out {out} should name a .json file, such as results/base.json")
    try:
        out.with_suffix(".parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent} cannot be written to ({error.strerror}); choose another --out") from None


def _data_digest(data_dir: str | Path | None, task: str) -> dict[str, str] | None:
    if data_dir is None:
        return None
    return {split: record.file_digest(path) for split, path in benchmarks.data_files(data_dir, task).items()}


def _code_digest(task: str) -> dict[str, str]:
    """Digests of the files of this package that a score of `task` depends on."""
    poetry = benchmarks.TASKS.parent
    own = {"poetry_verses": ("verses.*",), "poetry_form": ("sound.py", "verse.py", "verses.*")}.get(task, ())
    files = [*benchmarks.TASKS.glob(f"{task}.*"), *(path for pattern in own for path in poetry.glob(pattern))]
    files.append(poetry.parent / "shared_context.py")
    return {path.name: record.file_digest(path) for path in sorted(files)}


def _check_adapter(adapter: Path, source: Source) -> dict[str, Any]:
    """What a record says of the adapter; InputError if it is none, or was trained on another base."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        if not list(adapter.glob("adapter_model.safetensors")):
            raise FileNotFoundError
    except (OSError, ValueError):
        raise InputError(
            f"{adapter} is not an adapter (adapter_config.json, adapter_model.safetensors); give a run's adapter folder"
        ) from None
    method = "dora" if config.get("use_dora") else "lora"
    base, digest = str(config.get("base_model_name_or_path")), None
    if (adapter.parent / "record.json").exists():
        training = record.read(adapter.parent / "record.json")
        base, digest = training.model["id"], training.model["digest"]
        method = (training.adapter or {}).get("method", method)
    same = digest == source.digest
    if not (digest and source.digest):
        same = _bare(base) in (_bare(source.id), _bare(source.path))
    if not same:
        raise InputError(f"{adapter} was trained on {base}, not on {source.id}; evaluate it with --model {base}")
    return {"path": str(adapter), "digest": record.folder_digest(adapter), "method": method}


def _bare(name: str) -> str:
    """A model's name without its owner and without the mark of a quantized copy, which has the same 16-bit base."""
    return re.sub("-(unsloth-)?bnb-4bit$", "", name.rstrip("/").rsplit("/", 1)[-1].lower())


def _model_args(source: Source, adapter: str | Path | None, precision: str) -> dict[str, Any]:
    """Arguments of lm-eval's HFLM."""
    path, gguf = source.path, None
    if path.endswith(".gguf"):
        path, gguf = str(Path(path).parent), Path(path).name
    return {
        "pretrained": path,
        "gguf_file": gguf,
        "revision": source.hub_revision or "main",
        "peft": str(adapter) if adapter else None,
        "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision],
        "chat_template_args": {"date_string": chat.TEMPLATE_DATE},
    }


@contextmanager
def _lm_eval(processes: int) -> Iterator[subprocess.Popen[str]]:
    """A fresh process (see benchmarks.py) that waits for a job; ended with the block."""
    # In a session of its own Ctrl-C reaches this process alone, which then ends the other.
    quiet = {"LMEVAL_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "true"}
    quiet |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # a process that has asked CUDA itself cannot be copied
    process = subprocess.Popen(
        [sys.executable, "-m", benchmarks.__name__, str(processes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | quiet,
    )
    assert process.stdin
    try:
        yield process
    finally:
        process.terminate()  # which a launcher of several hands on to them
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def _run(process: subprocess.Popen[str], job: dict[str, Any]) -> float:
    """Hand the job to the process; its peak memory in GB at the end. RunError says what was kept."""
    assert process.stdin and process.stdout
    done: list[str] = []
    task = None
    failure: dict[str, Any] = {}
    peak = 0.0
    with suppress(BrokenPipeError):  # it has ended, and says below why
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        event = json.loads(line)
        match event["event"]:
            case "start":
                task = event["task"]
                print(f"{task}: running", file=sys.stderr)
            case "note":
                print(event["text"], file=sys.stderr)
            case "done":
                done.append(event["task"])
                peak = event["peak_memory_gb"]
            case "error":
                failure = event
    code = process.wait()
    kept = f"; finished tasks ({', '.join(done)}) are kept, the same command goes on" if done else ""
    if failure:
        print(failure["traceback"], file=sys.stderr) if failure["kind"] == "Exception" else None
        kind = InputError if failure["kind"] == "InputError" else RunError
        raise kind(failure["text"] + kept)
    if code:
        raise RunError(
            f"the evaluation process ended with code {code} at {task or 'its start'}, probably for lack of memory; "
            f"try a smaller --batch-size{kept}"
        )
    return peak


def _read_part(path: Path) -> dict[str, Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return dict(json.loads(next(lines)))
    except (OSError, ValueError, EOFError, StopIteration):
        raise RunError(f"{path} is damaged; delete it and run the same command again") from None


def _columns(items: dict[str, list[Any]], metric: str) -> dict[str, list[Any]]:
    """A part's items as a record's: the metric shown is called `value`, the others keep their names."""
    return {"value" if name == metric else name: column for name, column in items.items()}


def _task_entry(part: dict[str, Any], metric: str, items_digest: str) -> dict[str, Any]:
    others = {name: values for name, values in part["metrics"].items() if name != metric}
    told = ("n", "version", "num_fewshot", "items_hash", "chat_template_sha256", "batch_size", "seconds")
    entry = {"metric": metric, **part["metrics"][metric], **{key: part[key] for key in told if key in part}}
    return entry | {"items_digest": items_digest, "others": others}
