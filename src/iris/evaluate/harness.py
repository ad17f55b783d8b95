"""lm-eval as Iris asks it: a model loaded once, with any number of adapters; tasks from local files where they are
there; results as a record needs them."""

import gzip
import hashlib
import json
import logging
import math
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.utils
import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from transformers import AutoConfig, AutoTokenizer

from .. import InputError, RunError
from ..data import files, template
from ..hub import translate_errors
from ..model import hardware
from ..model.load import Source
from ..record import write_atomic
from .shared_context import SharedContextLM
from .tasks import OURS, SEEDS, TASKS, data_file, take_apart

Waiting = dict[str, dict[str | None, Path]]  # by task, the part to write for each adapter; None is the base alone

# lm-eval compiles a task's templates anew for every item: half a minute of the four benchmarks
lm_eval.utils.env.from_string = lru_cache(lm_eval.utils.env.from_string)


class Benchmark(ConfigurableTask):
    """A task of lm-eval's, zero-shot, with its items from a local file if `dataset_kwargs` names one. They are held as
    a list: lm-eval processes its data set anew, and reads it from Arrow row by row, each time that it looks at it."""

    documents: list[dict[str, Any]] | None = None

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.documents = list(self.task_docs)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not dataset_kwargs:
            super().download(dataset_kwargs, **kwargs)
            return
        subject = self.config.dataset_name  # mmlu_stem has one file for all of them
        given = files.read_file(Path(dataset_kwargs["local"]))
        rows = [row for row in given if row.get("subject", subject) == subject]
        self.dataset = {self.config.test_split or self.config.validation_split: datasets.Dataset.from_list(rows)}

    def fewshot_docs(self) -> None:
        return None

    @property
    def eval_docs(self) -> Any:
        return super().eval_docs if self.documents is None else self.documents


def score(source: Source, waiting: Waiting, settings: dict[str, Any], data_dir: str | Path | None) -> None:
    """Load a model and write the parts that are `waiting`; a part's first line is what a record needs, its second all
    of lm-eval's, with its samples. InputError or RunError says what was finished before. Under `accelerate launch` the
    first process writes."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for every new length: most of a step's time
    encode = json.JSONEncoder(default=lm_eval.utils.handle_non_serializable, ensure_ascii=False).encode
    done: list[str] = []
    ahead = ThreadPoolExecutor(1)
    loading = {name: ahead.submit(load, name, data_dir) for name in waiting}  # while the model is loaded, or scored
    try:
        with translate_errors(f"the model {source.id}"):
            dtype = hardware.dtype(settings["precision"])
            lm = SharedContextLM(**model_arguments(source), dtype=dtype, device=settings["device"], batch_size=1)
        for name, parts in waiting.items():
            task = loading[name].result()
            for adapter, part in parts.items():
                begin, said = time.monotonic(), f"{name}, {adapter}" if adapter else name
                if not lm.rank:
                    print(f"{said}: running", file=sys.stderr)
                lm.use(adapter)
                results = ask(lm, name, task, settings)
                lm.barrier()
                if lm.rank:
                    continue
                found = summary(name, results) | {"batch_size": lm.batch_size}
                found["seconds"] = round(time.monotonic() - begin, 2)
                write_atomic(
                    part, gzip.compress(f"{encode(found)}\n{encode(results)}".encode(), compresslevel=3, mtime=0)
                )
                done.append(said)
    except (InputError, RunError) as error:
        kept = f"; finished tasks ({', '.join(done)}) are kept, the same command goes on" if done else ""
        raise type(error)(f"{error}{kept}") from None
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)


def model_arguments(source: Source) -> dict[str, Any]:
    """HFLM's for a model's folder, or one on the Hub, or a GGUF file with its merged/ beside it."""
    given: dict[str, Any] = {"pretrained": source.path, "revision": source.hub_revision or "main"}
    given["chat_template_args"] = template.PINNED
    if source.path.endswith(".gguf"):  # of whose metadata transformers reads a part: Llama 3's rope scaling is left out
        folder, name = os.path.split(source.path)
        merged = Path(folder, "merged")
        given |= {"pretrained": folder, "gguf_file": name, "config": AutoConfig.from_pretrained(merged)}
        given["tokenizer"] = AutoTokenizer.from_pretrained(merged)
    return given


def load(name: str, data_dir: str | Path | None) -> dict[str, Any]:
    """A task, or a group with its tasks, as lm_eval.evaluate takes it."""
    local, folder = data_file(data_dir, name), OURS
    given: dict[str, Any] = {}
    if definition := TASKS[name].definition:
        folder = Path(lm_eval.__file__).parent / "tasks" / definition
        given = {"class": Benchmark, "dataset_kwargs": {"local": str(local)} if local else {}}
    manager = TaskManager(include_path=folder, include_defaults=False)
    known = manager.task_index[name].cfg
    names, group = [name], Group.from_config(known) if "group" in known else None
    if group is not None:  # it lists tags, which list tasks
        names = sorted(one for tag in known["task"] for one in manager.task_index[tag].tags)
    with translate_errors(f"{name}'s data" + ("" if data_dir else " (no --data-dir is given)")):
        tasks = manager.load([{"group": "iris", "task": [{"task": each, **given} for each in names]}])["tasks"]
    for task in tasks.values():
        task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SEEDS["fewshot"])
        if group is not None:  # an empty one is false
            group.add(task)
    return {"tasks": tasks, "groups": {} if group is None else {name: group}}


def ask(lm: SharedContextLM, name: str, task: dict[str, Any], settings: dict[str, Any]) -> Any:
    """lm-eval's results, all of them (None but in the first process), with half the batch each time memory runs out.
    RunError where a model's numbers are not finite, or an item was not scored once: processes that share them must lose
    and repeat none."""
    lm.batch_size_per_gpu = settings["batch_size"]
    while True:
        random.seed(SEEDS["python"])
        np.random.seed(SEEDS["numpy"])
        torch.manual_seed(SEEDS["torch"])
        given = {"limit": settings["limit"], "apply_chat_template": not TASKS[name].definition}
        try:
            results: Any = lm_eval.evaluate(lm=lm, task_dict=task, fewshot_as_multiturn=True, **given)
            break
        except RuntimeError as error:
            if "probability tensor contains" in str(error):  # torch.multinomial's way to say so
                raise RunError(f"{name}: the model's numbers are not finite; it, or its adapter, is broken") from None
            if not should_reduce_batch_size(error):
                raise
            if lm.batch_size == 1 or lm.world_size > 1:  # the others would wait for one that tries again
                raise RunError(f"memory ran out at batches of {lm.batch_size}; take a larger machine") from None
        lm.batch_size_per_gpu //= 2
        print(f"{name}: memory ran out; going on with batches of {lm.batch_size}", file=sys.stderr)
        clear_device_cache(garbage_collection=True)
    for leaf in task["tasks"] if results else ():
        found = sorted(sample["doc_id"] for sample in results["samples"][leaf])
        if found != list(range(results["n-samples"][leaf]["effective"])):
            raise RunError(f"{leaf}: {len(found)} scores do not match its items; nothing of it is kept")
    return results


def summary(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """What a record needs of lm-eval's results for one task or group. `items` holds ids and one column a metric, None
    where an item has no such score; (log-likelihood in nats, bytes) becomes bits per byte with the bytes as
    `weight`."""
    leaves = results["group_subtasks"].get(name) or [name]
    samples = []
    for leaf in leaves:
        for sample in sorted(results["samples"][leaf], key=lambda sample: sample["doc_id"]):
            samples.append(sample | {"id": f"{leaf}/" * (len(leaves) > 1) + str(sample["doc_id"])})
    own, metrics = results["results"][name], {}
    items: dict[str, list[Any]] = {"id": [sample["id"] for sample in samples]}
    for metric, direction in results["higher_is_better"][name].items():
        if f"{metric},none" not in own or metric.endswith("_stderr"):
            continue
        stderr = own[f"{metric}_stderr,none"]
        stderr = stderr if isinstance(stderr, float) and math.isfinite(stderr) else None
        metrics[metric] = {"value": own[f"{metric},none"], "stderr": stderr, "higher_is_better": direction}
        items[metric] = [sample.get(metric) for sample in samples]
        if isinstance(items[metric][0], list | tuple):
            items["weight"] = [size for _, size in items[metric]]
            items[metric] = [-nats / size / math.log(2) for nats, size in items[metric]]
    take_apart(TASKS[name], [sample["doc"].get("form", "") for sample in samples], items, metrics)
    hashes = "".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    return {
        "metrics": metrics,
        "n": sum(value is not None for value in items[TASKS[name].metric]),
        "version": results["versions"][name],
        "num_fewshot": results["n-shot"].get(name, 0),
        "items_hash": hashlib.sha256(hashes.encode()).hexdigest()[:16],
        "items": items,
    }
