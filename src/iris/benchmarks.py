"""lm-eval's tasks, run one after another in a process of their own.

Run by evaluate.py as `python -m iris.benchmarks PROCESSES`: a job comes as one line of JSON on standard input, events
go out as lines of JSON on standard output, lm-eval's progress bars go to standard error. Each finished task is written
before the next one begins. When standard input closes, the parent is gone and so is this process.

Several processes are copies of this one: they take the items in turn, and the first writes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import distributed
from .errors import InputError, RunError
from .record import write_atomic

TASKS = Path(__file__).with_name("poetry") / "tasks"

# Hub data set of each task: its id, its folder under --data-dir, the splits that lm-eval reads at zero shots, and the
# folder of its definition in lm_eval/tasks (to read all of lm-eval's takes five seconds).
DATA = {
    "hellaswag": ("Rowan/hellaswag", "hellaswag", ("train", "validation"), "hellaswag"),
    "arc_challenge": ("allenai/ai2_arc", "arc_challenge", ("train", "test"), "arc"),
    "mmlu_stem": ("cais/mmlu", "mmlu_stem", ("dev", "test"), "mmlu/default"),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "truthfulqa_mc", ("validation",), "truthfulqa"),
}

# Of lm-eval's JSON, what a record keeps beside the scores; a part keeps all of it, with the samples.
KEPT = (
    *("transformers_version", "lm_eval_version", "max_length", "eot_token_id"),
    *("tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token"),
)


def data_files(data_dir: str | Path, task: str) -> dict[str, Path]:
    """The local file of each split that `task` reads; none for a task that brings its own data. A split lies in
    SPLIT.jsonl.gz, SPLIT.jsonl or SPLIT_sample.jsonl. InputError if one is missing."""
    if task not in DATA:
        return {}
    _, folder, splits, _ = DATA[task]
    found = {}
    for split in splits:
        names = (f"{split}.jsonl.gz", f"{split}.jsonl", f"{split}_sample.jsonl")
        path = next((path for name in names if (path := Path(data_dir) / folder / name).is_file()), None)
        if path is None:
            raise InputError(f"{task} needs {Path(data_dir) / folder / names[0]}, which is not there; check --data-dir")
        found[split] = path
    return found


@lru_cache
def _read_rows(path: Path) -> list[dict[str, Any]]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines() if line.strip()]


def _use_local_data(data_dir: str) -> None:
    """Let datasets.load_dataset answer the four benchmarks' ids from local files, in this process."""
    import datasets

    from_hub = datasets.load_dataset
    task_of = {source[0]: task for task, source in DATA.items()}

    def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> Any:
        if path not in task_of:
            return from_hub(path, name, **kwargs)
        rows = {split: _read_rows(file) for split, file in data_files(data_dir, task_of[path]).items()}
        if task_of[path] == "mmlu_stem":  # one file for all subjects; the Hub's configurations are single subjects
            rows = {split: [row for row in part if row["subject"] == name] for split, part in rows.items()}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in rows.items()})

    datasets.load_dataset = load_dataset


def halve_until_it_fits(run: Callable[[int], Any], batch_size: int, say: Callable[[str], None]) -> tuple[Any, int]:
    """run(batch_size), with half the batch each time memory runs out; the result and the batch size that fitted."""
    import torch

    while True:
        try:
            return run(batch_size), batch_size
        except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
            words = str(error).lower()
            if not isinstance(error, MemoryError) and "out of memory" not in words and "can't allocate" not in words:
                raise
        if batch_size == 1 or distributed.size() > 1:  # the others would wait for one that begins again
            raise RunError(f"memory ran out at batches of {batch_size}; use a smaller model or a larger machine")
        batch_size //= 2
        say(f"memory ran out; going on with batches of {batch_size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def keep_documents(task: Any) -> None:
    """Let an lm-eval task hold the documents it is scored on as a list: it would process its data set anew, and read it
    from Arrow row by row, every time it looks at them, in every process all of them."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    task.dataset = {**task.dataset, split: list(task.task_docs)}
    task.config.process_docs = None


def summary(task: str, results: dict[str, Any]) -> dict[str, Any]:
    """What a record needs of lm-eval's results for one task or group, from its own aggregates and samples.

    `items` holds ids and one column a metric, None where an item has no such score; a metric that lm-eval keeps as
    (log-likelihood in nats, bytes) becomes bits per byte with the bytes as `weight`.
    """
    leaves = results["group_subtasks"].get(task) or [task]
    own = results["results"][task]
    direction = results["higher_is_better"][task]
    samples = {leaf: sorted(results["samples"][leaf], key=lambda s: s["doc_id"]) for leaf in leaves}
    names = [key.removesuffix(",none") for key in own if f"{key.removesuffix(',none')}_stderr,none" in own]
    names = [name for name in names if not name.endswith("_stderr")]
    items: dict[str, list[Any]] = {"id": []}
    for leaf in leaves:
        for sample in samples[leaf]:
            items["id"].append(f"{leaf}/{sample['doc_id']}" if len(leaves) > 1 else str(sample["doc_id"]))
            for name in names:
                value = sample.get(name)
                if isinstance(value, list | tuple):
                    nats, size = value
                    value = -nats / size / math.log(2)
                    items.setdefault("weight", []).append(size)
                items.setdefault(name, []).append(value)
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples[leaf]).encode())
    return {
        "metrics": {
            name: {
                "value": own[f"{name},none"],
                "stderr": stderr if isinstance(stderr := own[f"{name}_stderr,none"], float) else None,
                "higher_is_better": direction[name],
            }
            for name in names
        },
        "n": len(items["id"]),
        "version": results["versions"][task],
        "num_fewshot": results["n-shot"].get(task, 0),
        "items_hash": digest.hexdigest()[:16],
        "items": items,
    }


def check_items(task: str, results: dict[str, Any]) -> None:
    """RunError unless each item of the task was scored once: processes that share them must lose and repeat none."""
    for leaf in results["group_subtasks"].get(task) or [task]:
        found = sorted(sample["doc_id"] for sample in results["samples"][leaf])
        if found != list(range(results["n-samples"][leaf]["effective"])):
            raise RunError(f"{leaf}: {len(found)} scores do not match its items; nothing of it is kept")


def run(job: dict[str, Any], say: Callable[..., None]) -> None:
    """Load the model once, run the job's tasks, write each one's part; `say` gets the events."""
    import lm_eval
    import torch
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable
    from torch.utils import collect_env
    from transformers import AutoConfig, AutoTokenizer

    from .hardware import peak_memory_gb
    from .hub import said_plainly
    from .shared_context import SharedContextLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it obeys LMEVAL_LOG_LEVEL only once a task begins
    torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for every new length: most of a step's time
    if job["data_dir"]:
        _use_local_data(job["data_dir"])
    # lm-eval compiles a task's templates again for every item, prepares examples that zero shots do not show, looks the
    # machine over for seconds, and asks git, loudly, about the folder it runs in; the record does both in its own way
    lm_eval.utils.env.from_string = lru_cache(lm_eval.utils.env.from_string)
    ConfigurableTask.fewshot_docs = lambda _: []
    collect_env.get_pretty_env_info = lambda: ""
    evaluator.get_git_commit_hash = lambda: None
    folders = [Path(lm_eval.__file__).parent / "tasks" / source[3] for source in DATA.values()]
    manager = TaskManager(include_path=[TASKS, *folders], include_defaults=False)

    def load(task: dict[str, Any]) -> Any:
        with said_plainly(f"{task['name']}'s data" + ("" if job["data_dir"] else " (no --data-dir is given)")):
            loaded = manager.load([task["name"]])
        for one in loaded["tasks"].values():
            keep_documents(one)
        return loaded

    tasks = job["tasks"]
    ahead = ThreadPoolExecutor(1)
    loading = ahead.submit(load, tasks[0])  # while the model is loaded
    arguments = job["model_args"]
    with said_plainly(f"the model {arguments['pretrained']}"):
        if arguments["gguf_file"]:  # whose own metadata transformers reads in part: Llama 3's rope scaling is left out
            merged = Path(arguments["pretrained"]) / "merged"
            whole = {"tokenizer": AutoTokenizer.from_pretrained(merged), "config": AutoConfig.from_pretrained(merged)}
            arguments = arguments | whole
        lm = SharedContextLM(**arguments, device=job["device"], batch_size=1)
    for task, following in zip(tasks, [*tasks[1:], None], strict=True):
        name = task["name"]
        say(event="start", task=name)
        begin = time.monotonic()
        loaded = loading.result()
        if following:  # while this one is scored
            loading = ahead.submit(load, following)

        def attempt(batch_size: int, task: dict[str, Any] = task, loaded: Any = loaded) -> dict[str, Any]:
            lm.batch_size_per_gpu = batch_size
            return evaluator.simple_evaluate(
                lm,
                tasks=list(loaded["groups"].values()) or list(loaded["tasks"].values()),
                limit=job["limit"],
                apply_chat_template=task["chat_template"],
                task_manager=manager,
                log_samples=True,
            )

        def note(text: str, name: str = name) -> None:
            say(event="note", text=f"{name}: {text}")

        results, batch_size = halve_until_it_fits(attempt, job["batch_size"], note)
        if distributed.rank():
            continue
        check_items(name, results)
        part = summary(name, results) | {"batch_size": batch_size, "seconds": round(time.monotonic() - begin, 2)}
        if task["chat_template"]:
            part["chat_template_sha256"] = hashlib.sha256(str(lm.chat_template(True)).encode()).hexdigest()
        part["lm_eval"] = {name: results[name] for name in KEPT if name in results}
        # the first line is what a record needs, the second all of lm-eval's, with its samples
        lines = [json.dumps(each, default=handle_non_serializable, ensure_ascii=False) for each in (part, results)]
        write_atomic(task["part"], gzip.compress("\n".join(lines).encode(), mtime=0))
        say(event="done", task=name, peak_memory_gb=peak_memory_gb())


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would be held when this process ends in peace
    os._exit(1)


@contextmanager
def _told(say: Callable[..., None]) -> Iterator[None]:
    """What goes wrong becomes an event, and ends this process."""
    try:
        yield
    except (InputError, RunError) as error:
        say(event="error", kind=type(error).__name__, text=str(error))
        sys.exit(1)
    except Exception as error:
        if distributed.size() > 1:
            time.sleep(3)  # if this is so because another process ended, the launcher ends this one first
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        say(event="error", kind="Exception", text=first, traceback=traceback.format_exc())
        sys.exit(1)


def work(job: dict[str, Any], say: Callable[..., None]) -> None:
    """`run`, in this process or in each of several."""
    with _told(say):
        distributed.join()
        run(job, say)
        distributed.leave()


def main() -> None:
    processes = int(sys.argv[1])
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what lm-eval prints goes to standard error: standard output is for events

    def say(**event: Any) -> None:
        if distributed.rank() == 0 or event["event"] == "error":
            print(json.dumps(event), file=events, flush=True)

    with _told(say):
        # seconds of imports, while the parent makes up the job
        from transformers.models.llama import modeling_llama  # noqa: F401

        from . import shared_context  # noqa: F401

        line = sys.stdin.readline()
        if not line:  # all is known already, or the parent is gone
            return
        threading.Thread(target=_end_with_parent, daemon=True).start()
        if processes == 1:
            work(json.loads(line), say)
        else:
            distributed.fork(processes, work, json.loads(line), say)


if __name__ == "__main__":
    main()
