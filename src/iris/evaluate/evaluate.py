"""Scores of a model, alone and with any number of adapters, on lm-eval's tasks (tasks.py), kept as records.

Run as: iris evaluate --model smollm2 --out results/base.json
        iris evaluate --adapter runs/a/adapter --adapter runs/b/adapter --out results    # base.json, a.json, b.json
        accelerate launch --num_processes 2 -m iris evaluate ...                         # the items shared by two GPUs

A finished task is kept beside the record in NAME.parts/ and used again, by any record of the same folder, where model,
adapter, data, versions and settings are the same. All of it happens in this process: run it in a fresh one, as the
command line does and notebooks should.
"""

import gzip
import json
import os
import re
import sys
import time
import warnings
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import InputError, RunError, record
from ..data import template
from ..model import hardware
from ..model.load import Source, resolve, resolve_gguf
from ..recipe import PRECISIONS, one_of
from ..record import DECISIVE, Record
from .tasks import FIXED, SEEDS, TASKS, data_file, expand, key

MINOR = ("_name_or_path", "transformers_version", "dtype")  # of a configuration, what moves no score
BATCH_SIZE = {"cpu": 16, "cuda": 1024}  # continuations (fewer where they are long), or poems
KEPT = ("n", "version", "num_fewshot", "items_hash", "batch_size", "seconds")  # of a part, in the record


def evaluate(
    model: str,
    tasks: list[str],
    out: str | Path,
    *,
    adapters: list[str | Path] | tuple[()] = (),
    limit: int | None = None,
    data_dir: str | Path | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
) -> list[Record]:
    """Evaluate `model` (alias, Hub id, folder or exported GGUF, whose weights are unpacked); returns the records,
    written with their items beside them.

    `out` names one record (NAME.json), of the model or of its one adapter; or a folder, for base.json and a record of
    every adapter, named after its run. `tasks` are names of TASKS or GROUPS. `limit`: items a task (a subject of
    mmlu_stem). `data_dir` holds local copies of the benchmarks. Precision "auto" is fp32 on a CPU, else bf16 or fp16.
    InputError for what the caller can mend, RunError if the work fails; finished tasks are kept then."""
    begin, names = time.monotonic(), expand(tasks)
    paths = record_paths(Path(out), [Path(each) for each in adapters])
    processes = int(os.environ.get("WORLD_SIZE", 1))  # of `accelerate launch`, each of which needs an item
    for flag, number, least in (("--limit", limit, processes), ("--batch-size", batch_size, 1)):
        if number is not None and number < least:
            raise InputError(f"{flag} must be at least {least}, not {number}")
    if "unsloth" in sys.modules:
        raise InputError("Unsloth has patched this process, which may move scores; use `iris evaluate` instead")
    one_of(precision, PRECISIONS, "precision")
    for name in names:
        data_file(data_dir, name)
    source = resolve_gguf(Path(model)) if model.endswith(".gguf") else resolve(model)
    adapted = {path: check_adapter(adapter, source) if adapter else None for path, adapter in paths.items()}
    device = hardware.device()
    if precision == "auto" and device == "cpu":
        precision = "fp32"  # where nothing is learned, exact scores are worth more than speed
    settings: dict[str, Any] = {"precision": hardware.precision(precision), "device": device}
    settings |= {"batch_size": batch_size or BATCH_SIZE[device], "limit": limit, "num_fewshot": 0}
    settings |= {"chat_template": "poetry tasks only", "seeds": SEEDS}
    versions = {name: metadata.version(name) for name in DECISIVE}
    described = source.as_dict() | describe(source)
    parts: dict[tuple[Path, str], Path] = {}
    waiting: dict[str, dict[str | None, Path]] = {}
    for name in names:
        for path, adapter in adapted.items():
            changing = adapter and [adapter["digest"], adapter["config"]]
            digest = record.digest_of([key(name, data_dir), described, changing, settings, versions])
            known = sorted(path.parent.glob(f"*.parts/{name}-{digest}.json.gz"))
            parts[path, name] = known[0] if known else path.with_suffix(".parts") / f"{name}-{digest}.json.gz"
            if known:
                print(f"{name}: already measured with the same model, data, versions and settings", file=sys.stderr)
            else:
                waiting.setdefault(name, {})[adapter["path"] if adapter else None] = parts[path, name]
    if waiting:
        with warnings.catch_warnings(action="ignore"):
            from .harness import score

            score(source, waiting, settings, data_dir)
    if int(os.environ.get("RANK", 0)):
        return []
    records = []
    for path, adapter in adapted.items():
        one = Record("evaluation", path.stem, described, "finished", adapter, settings=settings)
        one.environment |= {"device": hardware.device_name(), "processes": processes}
        items = {}
        for name in names:
            metric, file = TASKS[name].metric, parts[path, name]
            try:
                with gzip.open(file, "rt", encoding="utf-8") as lines:
                    part = json.loads(next(lines))
            except (OSError, ValueError, EOFError, StopIteration):
                raise RunError(f"{file} is damaged; delete it and run the same command again") from None
            items[name] = {"value" if column == metric else column: each for column, each in part["items"].items()}
            one.tasks[name] = {"metric": metric, **part["metrics"].pop(metric), **{each: part[each] for each in KEPT}}
            one.tasks[name] |= {"items_digest": record.digest_of(items[name]), "others": part["metrics"]}
            one.tasks[name] |= {"parts": list(FIXED)} if TASKS[name].by_form else {}
        if waiting:
            one.measures["peak_memory_gb"] = record.peak_memory_gb()
        one.measures["wall_seconds"] = round(time.monotonic() - begin, 2)
        record.write_items(path, items)
        record.write(one, path)
        records.append(one)
    return records


def record_paths(out: Path, adapters: list[Path]) -> dict[Path, Path | None]:
    """The records to write, each with its adapter (None: the base alone). InputError where `out` cannot be that."""
    paths: dict[Path, Path | None] = {out / "base.json": None}
    if out.suffix == ".json":
        paths, expected = {out: adapters[0] if adapters else None}, max(1, len(adapters))
    else:
        for each in adapters:
            paths[out / f"{(each.parent if each.name == 'adapter' else each).resolve().name}.json"] = each
        expected = 1 + len(adapters)
    if len(paths) != expected:
        raise InputError(f"{out} has no record for each adapter: give a folder, and runs that differ in name from base")
    try:
        for path in paths:
            path.with_suffix(".parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None
    return paths


def check_adapter(adapter: Path, source: Source) -> dict[str, Any]:
    """What a record says of the adapter; InputError if it is no LoRA, or was trained on another base."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        (adapter / "adapter_model.safetensors").stat()
    except (OSError, ValueError):
        raise InputError(f"{adapter} is not an adapter in safetensors; give a run's adapter folder") from None
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    if (kind, bias) != ("LORA", "none"):
        raise InputError(f"{adapter} is an adapter of kind {kind} with bias={bias}; Iris scores LoRA and DoRA without")
    kind = method = "dora" if config.get("use_dora") else "lora"
    base, digest = str(config.pop("base_model_name_or_path", None)), None
    if (adapter.parent / "record.json").exists():
        training = record.read(adapter.parent / "record.json")
        base, digest = training.model["id"], training.model["digest"]
        method = (training.adapter or {}).get("method", method)
    by_name = not (digest and source.digest)
    if bare(base) not in (bare(source.id), bare(source.path)) if by_name else digest != source.digest:
        raise InputError(f"{adapter} was trained on {base}, not on {source.id}; evaluate it with --model {base}")
    told = {"path": str(adapter), "digest": record.folder_digest(adapter), "method": method}
    return told | {"kind": kind, "config": record.digest_of(config)}


def bare(name: str) -> str:
    """A model's name without its owner and without the mark of a quantized copy, which has the same 16-bit base."""
    return re.sub("-(unsloth-)?bnb-4bit$", "", name.rstrip("/").rsplit("/", 1)[-1].lower())


def describe(source: Source) -> dict[str, str]:
    """Digests of what moves a model's scores besides its weights: configuration, tokenizer and chat template, by what
    they do, so that a copy saved anew, or with the date written into its template, is the same."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder = str(Path(source.path).parent / "merged") if source.path.endswith(".gguf") else source.path
    revision = source.hub_revision or "main"
    config = AutoConfig.from_pretrained(folder, revision=revision).to_dict()
    with suppress(OSError):  # where there is none
        config |= GenerationConfig.from_pretrained(folder, revision=revision).to_diff_dict()
    tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
    words = [tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()]
    words += [tokenizer.special_tokens_map, tokenizer.model_max_length]
    asked, told = {"role": "user", "content": "Write a haiku."}, {"role": "assistant", "content": "No."}
    rendered = []
    for talk in ([asked], [{"role": "system", "content": "Be brief."}, asked], [asked, told, asked]):
        try:
            rendered.append(template.render(tokenizer, talk, add_generation_prompt=True))
        except Exception as error:  # no template, or one that refuses
            rendered.append(type(error).__name__)
    config = {key: value for key, value in config.items() if key not in MINOR}
    digests = (record.digest_of(each) for each in (config, words, rendered))
    return dict(zip(("config", "tokenizer", "template"), digests, strict=True))
