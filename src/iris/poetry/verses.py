"""The bundled poems: rows of {"conversations": [{"from": "human" | "gpt", "value"}], "forms": [one a poem], "theme"}.

One row in eight of the first 527 is held out for evaluation; which ones is a matter of their text alone. Rows that came
later say "split": "train": with them the held-out poems, and so the scores of poetry_verses, stay what they were.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("verses.jsonl")
GROWN = Path(__file__).with_name("grown.jsonl.gz")  # by bench/grow.py: poems by a model that landed on its end words


def first_exchange(row: dict[str, Any]) -> tuple[str, str]:
    """The first request of a row and the poem that answers it."""
    request = next(turn["value"] for turn in row["conversations"] if turn["from"] == "human")
    poem = next(turn["value"] for turn in row["conversations"] if turn["from"] == "gpt")
    return request, poem


def is_held_out(row: dict[str, Any]) -> bool:
    """Whether a row is for evaluation only: SHA-256 of its first request, a line break and its first poem, mod 8."""
    if row.get("split") == "train":
        return False
    digest = hashlib.sha256("\n".join(first_exchange(row)).encode()).hexdigest()
    return int(digest, 16) % 8 == 0


def read_verses(split: str) -> list[dict[str, Any]]:
    """The rows of "train" or of "held_out", in the file's order."""
    if split not in ("train", "held_out"):
        raise ValueError(f"unknown split {split!r}; it is train or held_out")
    rows = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [row for row in rows if is_held_out(row) == (split == "held_out")]
