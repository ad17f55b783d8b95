"""Rows of any known shape -> messages. Counts what it drops, and why; nothing disappears silently.

A row becomes a list of {"role", "content"} with the roles system, user, assistant and tool. Known shapes: ShareGPT
(conversations of from/value), messages (role/content) and Alpaca (instruction/input/output).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from . import hub
from .errors import InputError
from .poetry import verses
from .record import digest_of

Message = dict[str, str]

HUB = {
    "finetome": "mlabonne/FineTome-100k",
    "fusechat": "FuseAI/FuseChat-Mixture",
    "nitral": "Nitral-AI/Creative_Writing-ShareGPT",
}
FILES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",  # the call is something the model says
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}


@dataclass
class Dataset:
    """`rows` as messages, in order; `dropped` counts rows left out by reason, `cut` rows shortened by reason."""

    id: str
    revision: str | None
    rows: list[list[Message]]
    read: int
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)

    @property
    def fingerprint(self) -> str:
        return digest_of(self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "revision": self.revision,
            "read": self.read,
            "rows": len(self.rows),
            "dropped": dict(self.dropped),
            "cut": dict(self.cut),
            "fingerprint": self.fingerprint,
        }


def load(data: str, rows: int | None = None, seed: int = 3407, benchmarks: set[str] | None = None) -> Dataset:
    """Read `data`: verses, a name in HUB, a file, or a Hub data set id. `rows` asks for a seeded sample of the rows
    that can be used; `benchmarks` holds n-grams of evaluation items (see `ngrams`), and rows with one of them are
    refused. InputError if there is nothing to read, a line is no JSON, or no row can be used."""
    revision: str | None = None
    if data == "verses":
        raw: Iterator[Any] = iter(verses.read_verses("train"))
    elif data.endswith(FILES) or Path(data).exists():
        raw, revision = read_file(Path(data)), _file_revision(Path(data))
    elif data in HUB or data.count("/") == 1:
        raw, revision = _read_hub(HUB.get(data, data))
    else:
        known = ", ".join(["verses", *HUB])
        raise InputError(f"unknown data {data!r}; known: {known}, a file ({' '.join(FILES)}) or a Hub id USER/NAME")
    found = Dataset(HUB.get(data, data), revision, [], 0)
    seen: set[str] = set()
    for row in raw:
        found.read += 1
        messages, reason = to_messages(row)
        if messages and (key := digest_of(messages)) in seen:
            reason = "repeated row"
        elif messages and benchmarks and not benchmarks.isdisjoint(ngrams(" ".join(m["content"] for m in messages))):
            reason = "contains a benchmark question"
        if reason:
            found.dropped[reason] += 1
        else:
            seen.add(key)
            found.rows.append(messages)
    if not found.rows:
        why = "; ".join(f"{count} x {reason}" for reason, count in found.dropped.items()) or "it is empty"
        raise InputError(f"{data} has no row to train on ({why})")
    if rows is not None and rows < len(found.rows):
        keep = sorted(random.Random(seed).sample(range(len(found.rows)), rows))
        found.rows = [found.rows[index] for index in keep]
    return found


def to_messages(row: Any) -> tuple[list[Message], str]:
    """One row as messages and "", or [] and the reason why it cannot be used."""
    if not isinstance(row, dict):
        return [], "not an object"
    if isinstance(turns := row.get("conversations", row.get("messages")), list):
        pairs = [
            (str(turn.get("from", turn.get("role", ""))), turn.get("value", turn.get("content")))
            for turn in turns
            if isinstance(turn, dict)
        ]
        if len(pairs) != len(turns):
            return [], "a turn is not an object"
    elif "instruction" in row and "output" in row:
        asked = [str(row["instruction"]), str(row.get("input") or "")]
        pairs = [("user", "\n\n".join(part for part in asked if part.strip())), ("assistant", row["output"])]
        if row.get("system"):
            pairs.insert(0, ("system", row["system"]))
    else:
        return [], "unknown shape"
    messages = []
    for speaker, content in pairs:
        if (role := ROLES.get(speaker.lower())) is None:
            return [], f"unknown speaker {speaker[:20]!r}"
        if not isinstance(content, str) or not content.strip():
            return [], "empty turn"
        messages.append({"role": role, "content": content.strip()})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # nothing is learned from what follows the last answer
    if not messages:
        return [], "no answer"
    if any(message["role"] == "system" for message in messages[1:]):
        return [], "system message in the middle"
    if next(message["role"] for message in messages if message["role"] != "system") != "user":
        return [], "does not begin with a question"
    return messages, ""


def read_file(path: Path) -> Iterator[Any]:
    """The rows of a JSONL(.gz), JSON(.gz) or Parquet file. InputError names the line that is no JSON."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; give a {' '.join(FILES)} file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; it needs one JSON row a line")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            yield from pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable Parquet file: {error}") from None
        return
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if ".jsonl" not in path.suffixes:
        try:
            whole = json.loads(text)
            yield from whole if isinstance(whole, list) else [whole]
            return
        except ValueError as error:
            if "Extra data" not in str(error):
                raise InputError(f"{path} is not JSON: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(f"{path}, line {number} is not JSON; mend or remove that line") from None


def _file_revision(path: Path) -> str | None:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def _read_hub(hub_id: str) -> tuple[Iterator[Any], str | None]:
    import datasets

    commit = hub.revision(hub_id, "dataset")
    load = partial(datasets.load_dataset, hub_id, split="train", revision=commit)
    return iter(hub.patiently(f"the data set {hub_id}", load)), commit


NGRAM = 13  # words; the length used for GPT-3's and lm-eval's decontamination


def ngrams(text: str) -> set[str]:
    """The word 13-grams of a text, lower-case letters and digits only (Brown et al. 2020, appendix C)."""
    words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    return {" ".join(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)}


def benchmark_ngrams(folder: Path) -> set[str]:
    """13-grams of every question in the evaluation files of `folder` (laid out as `iris evaluate --data-dir`)."""
    found: set[str] = set()
    files = [path for path in folder.glob("*/*") if path.name.startswith(("test", "validation"))]
    if not files:
        raise InputError(f"{folder} holds no benchmark files such as hellaswag/validation.jsonl.gz")
    for path in files:
        for row in read_file(path):
            found |= ngrams(str(row.get("ctx") or row.get("question") or ""))
    return found
