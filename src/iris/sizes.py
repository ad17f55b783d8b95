"""Which size of model for what: the speed records as one table by size, the sentence that its columns support, and a
picture; below it the engines and the peers, each side by side as they ran.

The weights are random, so all of this is about time and memory; which size writes better is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .recipe import METHODS
from .record import Record
from .tables import NOT_MEASURED, Scored, markdown

WATCHED = 20.0  # tokens/s: a quatrain of 40 tokens is there in two seconds
READ = 5.0  # tokens/s of silent reading: 238 English words a minute (Brysbaert 2019), 1.3 tokens a word
TRAINING = ("method", "tokens/s", "a step", "GPU memory")
WRITING = ("GGUF", "file", "loads in", "reads<br>tokens/s", "writes<br>tokens/s", "memory", "share of<br>bandwidth")

Row = dict[str, Any]
Measured = list[tuple[Record, Row]]  # a row with the record that it stands in


def speed_table(groups: list[list[Scored]], records: list[Record], results: Path) -> str:
    """Sizes, the sentence on them, the engines, the peers of training, and GPUs held to a T4's limits."""
    parts = [sizes_table(records), which_for_what(records)]
    engines = [(one, row) for one, row in _rows(records, "generation_tokens_per_s") if "shape" not in row]
    for one in _records(engines):
        told = (
            f"{one.settings['device']}, {one.settings['prompt_tokens']} tokens in, {one.settings['written_tokens']} out"
        )
        parts.append(f"Engines of the 1B, one after the other in one run ({told}):")
        parts.append(_side_by_side("GGUF", one, lambda row: named(row["quant"]), lambda row: row["who"], _engine))
    trained = _rows(records, "steady_tokens_per_s")
    for one in _records([(one, row) for one, row in trained if row.get("who") not in ("iris", None)]):
        parts.append(f"Training beside a peer, one after the other in one session ({one.settings['device']}):")
        parts.append(_side_by_side("1B", one, _method, _peer, _trained))
    for one in (one for one in records if one.settings.get("as_t4")):
        lines = [[named(row["shape"]), *_training(row), row["precision"]] for row in one.measures["rows"]]
        told = f"{one.settings['device']}, {one.settings['steps']} steps, {', '.join(one.settings['set'])}"
        parts.append(f"Training within a T4's limits, no bf16, no FlashAttention, 15 GB ({told}):")
        parts.append(markdown(["size", *TRAINING, "precision"], lines))
    return "\n\n".join(part for part in parts if part)


def training_rows(records: list[Record]) -> Measured:
    """What was measured of Iris' training, by size, at a GPU's full strength; measured again, the latest counts."""
    found = sorted(_rows(records, "steady_tokens_per_s"), key=lambda each: each[0].started)
    ours = [(one, row) for one, row in found if row.get("who") == "iris" and not one.settings.get("as_t4")]
    return list({(row["shape"], row["method"]): (one, row) for one, row in ours}.values())


def writing_rows(records: list[Record]) -> Measured:
    """What was measured of the Space's engine, by size."""
    return [(one, row) for one, row in _rows(records, "generation_tokens_per_s") if "shape" in row]


def _rows(records: list[Record], key: str) -> Measured:
    speeds = [one for one in records if one.kind == "speed"]
    return [(one, row) for one in speeds for row in one.measures.get("rows", []) if key in row]


def _records(measured: Measured) -> list[Record]:
    return list({id(one): one for one, _ in measured}.values())


def sizes_table(records: list[Record]) -> str:
    """A row a size: training on the left, a line a method; writing on the right, a line a quantization."""
    training, writing = training_rows(records), writing_rows(records)
    lines = []
    for shape in by_size([*training, *writing]):
        trained = [_training(row) for _, row in training if row["shape"] == shape]
        absent = [method for method in METHODS if trained and method not in [line[0] for line in trained]]
        trained += [[method, NOT_MEASURED, "", ""] for method in absent]
        written = [_writing(row) for _, row in writing if row["shape"] == shape]
        cells = [*zip(*trained or [[NOT_MEASURED, *[""] * (len(TRAINING) - 1)]], strict=True)]
        cells += zip(*written or [[NOT_MEASURED, *[""] * (len(WRITING) - 1)]], strict=True)
        lines.append([f"**{named(shape)}**", *("<br>".join(cell) for cell in cells)])
    where = [(what, _records(rows)) for what, rows in (("training", training), ("GGUF", writing)) if rows]
    told = [f"{what} on {', '.join(dict.fromkeys(one.settings['device'] for one in on))}" for what, on in where]
    table = markdown(["size", *TRAINING, *WRITING], lines)
    return f"Random weights in the Llama-3 shapes; {'; '.join(told)}.\n\n{table}" if lines else ""


def which_for_what(records: list[Record]) -> str:
    """Which size to choose for what, as far as the table's columns say it, and what exporting takes."""
    training, writing = training_rows(records), writing_rows(records)
    told = []
    for least, what in ((WATCHED, "is watched while it writes"), (READ, "writes as fast as people read")):
        fast = [row for _, row in writing if row["generation_tokens_per_s"] >= least]
        if not fast:
            told.append(f"no size where the page {what} ({least:.0f} tokens/s)")
            continue
        row = max(fast, key=lambda row: (_billions(row["shape"]), row["generation_tokens_per_s"]))
        numbers = f"it writes {row['generation_tokens_per_s']:.1f}, in {row['peak_memory_gb']:.1f} GB of memory"
        file = f"the {named(row['shape'])} as {named(row['quant'])}"
        told.append(f"{file} where the page {what} ({least:.0f} tokens/s; {numbers})")
    sentences = [f"The largest that these cores carry: {'; '.join(told)}."] if writing else []
    costs = []
    for shape in by_size(training):
        quick = max((row for _, row in training if row["shape"] == shape), key=lambda row: row["steady_tokens_per_s"])
        cost = f"{1e6 / quick['steady_tokens_per_s']:,.0f} s and {quick['peak_memory_gb']:.0f} GB"
        costs.append(f"{cost} for the {named(shape)} ({quick['method']})")
    if costs:
        sentences.append(f"A million tokens of training cost, with the fastest method: {', '.join(costs)}.")
    memory = {one.settings["shape"]: one.measures["peak_memory_gb"] for one in records if "shape" in one.settings}
    if memory:
        told = [f"{memory[shape]:.1f} GB for the {named(shape)}" for shape in sorted(memory, key=_billions)]
        sentences.append(f"`iris export` takes at its peak, recital included, {', '.join(told)}.")
    return " ".join([*sentences, "Which size writes better, random weights cannot say."]) if sentences else ""


def picture(records: list[Record]) -> list[Row]:
    """The bars of speed.png: each one's panel, size, name and value."""
    panels = {
        "training (tokens/s, GPU)": (training_rows(records), "method", "steady_tokens_per_s"),
        "writing (tokens/s, CPU)": (writing_rows(records), "quant", "generation_tokens_per_s"),
        "memory of writing (GB)": (writing_rows(records), "quant", "peak_memory_gb"),
    }
    return [
        {"panel": panel, "size": named(shape), "name": row[name], "value": row[value]}
        for panel, (measured, name, value) in panels.items()
        for shape in by_size(measured)
        for _, row in measured
        if row["shape"] == shape
    ]


def by_size(measured: Measured) -> list[str]:
    """The shapes that were measured, the smallest first."""
    return sorted({row["shape"] for _, row in measured}, key=_billions)


def _billions(shape: str) -> float:
    return float(shape.removesuffix("b"))


def named(name: str) -> str:
    """A shape or a quantization as people write it: 1B, Q4_0, bf16."""
    return name if name == "bf16" else name.upper()


def _training(row: Row) -> list[str]:
    speed, memory = row["steady_tokens_per_s"], row["peak_memory_gb"]
    return [row["method"], f"{speed:,.0f}", f"{row['step_seconds']:.2f} s", f"{memory:.1f} GB"]


def _writing(row: Row) -> list[str]:
    speeds = [f"{row[key]:.1f}" for key in ("prompt_tokens_per_s", "generation_tokens_per_s")]
    file = [named(row["quant"]), f"{row['file_gb']:.2f} GB", f"{row['load_seconds']:.1f} s"]
    return [*file, *speeds, f"{row['peak_memory_gb']:.1f} GB", f"{row['bandwidth_ratio']:.0%}"]


def _side_by_side(
    corner: str, one: Record, line: Callable[[Row], str], column: Callable[[Row], str], cell: Callable[[Row], str]
) -> str:
    """The rows of a record as a table with one column for each who; what was not measured stays empty."""
    found = {(line(row), column(row)): cell(row) for row in one.measures["rows"] if row.get("shape", "1b") == "1b"}
    columns = list(dict.fromkeys(name for _, name in found))
    lines = list(dict.fromkeys(name for name, _ in found))
    return markdown([corner, *columns], [[name, *(found.get((name, each), "") for each in columns)] for name in lines])


def _engine(row: Row) -> str:
    speeds = f"reads {row['prompt_tokens_per_s']:.1f}, writes {row['generation_tokens_per_s']:.1f} tokens/s"
    return f"{speeds}<br>{row['bandwidth_ratio']:.0%} of the bandwidth, {row['peak_memory_gb']:.1f} GB"


def _method(row: Row) -> str:
    method = str(row.get("method") or row["who"].split("-")[1])
    return "lora16" if method == "lora" else method


def _peer(row: Row) -> str:
    """bench/peer_training.py's mode in words: u-lora-bs=16-pack=1 -> Unsloth (bs=16, pack=1)."""
    if row["who"] == "iris":
        return "Iris"
    engine, _, *options = row["who"].split("-")
    return f"{ {'u': 'Unsloth', 't': 'TRL + PEFT'}[engine] } ({', '.join(options)})"


def _trained(row: Row) -> str:
    return f"{row['steady_tokens_per_s']:,.0f} tokens/s, {row['peak_memory_gb']:.1f} GB"
