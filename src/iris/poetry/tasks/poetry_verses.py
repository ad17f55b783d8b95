"""What poetry_verses.yaml needs beyond YAML: its data, its requests and its standard error."""

import math
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from iris.poetry.verses import first_exchange, read_verses


def load(**_: Any) -> dict[str, Dataset]:
    """The first exchange of every held-out row."""
    pairs = [first_exchange(row) for row in read_verses("held_out")]
    return {"test": Dataset.from_list([{"request": request, "poem": poem} for request, poem in pairs])}


class PoetryVerses(ConfigurableTask):
    """A loglikelihood task whose score is the poem's alone: the white space in which a chat template ends, and which
    lm-eval moves from the context to the continuation, is scored by itself and taken off again."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        if not kwargs.pop("apply_chat_template", False):
            raise ValueError("poetry_verses is a conversation: run lm_eval with --apply_chat_template")
        kwargs.pop("chat_template", None)
        texts = [doc["poem"], ""] if ctx != ctx.rstrip() else [doc["poem"]]
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, text), idx=i, **kwargs)
            for i, text in enumerate(texts)
        ]


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """(log-likelihood in nats, UTF-8 bytes) of the poem."""
    whole, *blank = (loglikelihood for loglikelihood, _ in results)
    scored = (whole - sum(blank), len(doc["poem"].encode()))
    return {"bits_per_byte": scored, "bits_per_byte_stderr": scored}


def bits_per_byte_stderr(items: list[tuple[float, int]]) -> float:
    """Standard error of the byte-weighted mean, as that of a ratio estimator (Cochran, Sampling Techniques, 6.5)."""
    total = sum(size for _, size in items)
    mean = sum(nats for nats, _ in items) / total
    squares = sum((nats - mean * size) ** 2 for nats, size in items)
    return math.sqrt(squares * len(items) / (len(items) - 1)) / total / math.log(2) if len(items) > 1 else math.nan
