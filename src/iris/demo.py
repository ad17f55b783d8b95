"""`iris demo`: the whole loop on this machine, from a model in a package to poems out of a GGUF file."""

from __future__ import annotations

import shutil
import textwrap
import time
from pathlib import Path

from . import checkpoints, compare, embedded, evaluate, export, recipe, record, train
from .poet import Poet

THEMES = (("haiku", "the last train home"), ("limerick", "a baker who overslept"), ("free", "my grandmother's radio"))
SEED = 7


def run(out: Path, results: Path, max_steps: int | None = None, limit: int | None = None) -> None:
    """Train on the bundled verses into `out`, evaluate base and tuned into `results`/demo, compare, export, recite."""
    began = time.monotonic()
    records = results / "demo"
    gguf_folder = out.with_name(out.name + "-gguf")

    _say(1, "train: a 16-bit LoRA adapter of SmolLM2-135M-Instruct on the bundled verses")
    asked = recipe.make(max_steps=max_steps)
    train.fit(asked, out, resume=_make_room(out, asked))

    _say(2, "evaluate: bits per byte of held-out poems, before and after (lower is better)")
    base, tuned = records / "base.json", records / "tuned.json"
    evaluate.evaluate("smollm2", None, ["poetry_verses"], base, limit=limit)
    evaluate.evaluate("smollm2", out / "adapter", ["poetry_verses"], tuned, limit=limit)

    _say(3, "compare: base against tuned, poem by poem")
    print(compare.compare([base, tuned]).table())

    _say(4, "export: merge the adapter into its base and write GGUF files")
    shutil.rmtree(gguf_folder, ignore_errors=True)
    export.export(out, gguf_folder, ["f16", "q8_0"])
    gguf = next(gguf_folder.glob("*[qQ]8_0.gguf"))

    _say(5, "recite: the same requests to the base and to the tuned model")
    before, after = Poet(embedded.gguf(), n_parallel=1), Poet(gguf, n_parallel=1)
    poems = []
    for form, theme in THEMES:
        print(f"\n  {form}: {theme}\n")
        left, right = (poet.recite(theme, form, seed=SEED).text for poet in (before, after))
        print(_beside(left, right))
        poems.append({"form": form, "theme": theme, "base": left, "tuned": right})
    training = record.read(out / "record.json")
    told = {"poems": poems, "training_seconds": training.measures["wall_seconds"]}
    recital = record.Record("export", "recital", training.model, "finished", training.adapter, training.recipe)
    recital.settings, recital.measures = {"seed": SEED, "file": gguf.name}, told
    record.write(recital, records / "recital.json")

    minutes = (time.monotonic() - began) / 60
    print(f"\nDone in {minutes:.1f} minutes. Loss curve: {out / 'loss.png'}. Records: {records}.")
    print(f"Open the room:  IRIS_MODEL={gguf} IRIS_BASE=smollm2 .venv/bin/python app.py")


def _say(number: int, what: str) -> None:
    print(f"\n\033[1m{number}/5  {what}\033[0m", flush=True)


def _make_room(out: Path, asked: recipe.Recipe) -> bool:
    """Whether to resume: an interrupted demo of the same recipe goes on; a finished one is replaced."""
    if not (out / "record.json").exists():
        return False
    earlier = record.read(out / "record.json")
    same = not recipe.changes(asked, earlier.recipe or {})
    if earlier.status != "finished" and same and checkpoints.last(out):
        return True
    print(f"replacing the earlier demo in {out}")
    shutil.rmtree(out)
    return False


def _beside(left: str, right: str, width: int = 46) -> str:
    """Two poems in two columns, with long lines folded."""
    columns = []
    for title, poem in (("base", left), ("tuned", right)):
        folded = [part for line in poem.splitlines() for part in (textwrap.wrap(line, width) or [""])]
        columns.append([title, "-" * len(title), *folded])
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return "\n".join(f"    {a:<{width}}  {b}".rstrip() for a, b in zip(*padded, strict=True))
