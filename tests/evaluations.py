"""Records of evaluations as `iris evaluate` writes them, of scores a test makes up; the samples beside real ones."""

import gzip
import json

import numpy as np

from iris import record

VERSIONS = {"torch": "2.13.0", "transformers": "5.17.0", "peft": "0.21.2", "lm_eval": "0.4.13"}
SETTINGS = {"precision": "fp32", "device": "cpu", "batch_size": 8, "limit": None, "num_fewshot": 0}


def write(path, tasks, kind="evaluation", versions=VERSIONS, model=None, **changes):
    """A record at `path` of {task: (metric, higher_is_better, columns, what else its entry says)}; `changes` are of the
    record or of each task."""
    of_record = {key: changes.pop(key) for key in ("status", "settings", "adapter") if key in changes}
    base = {"id": "a", "revision": None, "digest": "0"} | (model or {})
    made = record.Record(kind, path.stem, base, **{"status": "finished", "settings": SETTINGS} | of_record)
    made.environment = {"packages": dict(versions), "device": "NVIDIA H100"}
    items = {}
    for task, (metric, higher, columns, *more) in tasks.items():
        items[task] = {"id": [str(i) for i in range(len(columns["value"]))], **columns}
        column = np.array(columns["value"], float)
        value = float(np.average(column, weights=columns.get("weight")))
        others = {
            name: {"value": float(np.nanmean(np.array(column, float))), "higher_is_better": True, "stderr": 0.1}
            for name, column in columns.items()
            if name not in ("value", "weight")
        }
        entry = {"metric": metric, "value": value, "stderr": float(column.std() / len(column) ** 0.5), "n": len(column)}
        entry |= {"higher_is_better": higher, "version": 1.0, "num_fewshot": 0, "items_hash": "h", "others": others}
        entry |= {"items_digest": record.digest_of(items[task])}
        made.tasks[task] = entry | changes | dict(*more)
    record.write_items(path, items)
    record.write(made, path)
    return path


def samples(out, task):
    """lm-eval's samples of a task, from the part beside the record at `out`."""
    (part,) = out.with_suffix(".parts").glob(f"{task}-*.json.gz")
    return json.loads(gzip.decompress(part.read_bytes()).splitlines()[1])["samples"][task]
