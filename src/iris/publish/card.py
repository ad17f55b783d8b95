"""The README.md of a published model and of its Space, and the licence that they carry, which is the base's.

The words are in card.md.jinja and space.md.jinja. Every figure comes from a record; what has none is said not to be
measured.
"""

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import InputError, RunError, compare, record
from ..compare import Scored, short, with_error
from ..evaluate.tasks import FIXED, TASKS
from ..poetry.forms import FORMS
from ..poetry.wish import MOODS, Wish
from ..record import Record

COMMIT = re.compile("[0-9a-f]{40}")  # the revision of a data set that was read from the Hub; of a file it is a digest
# fields of a recipe that do not shape a model
OF_THE_RUN_ONLY = ("model", "data", "report_to", "save_steps", "engine", "compile", "micro_batch")

LLAMA = re.compile(r"(?<![a-z])llama")  # in a model's id; TinyLlama is another family
LLAMA_3_WORDS = 128256  # a model with this vocabulary descends from Llama 3, whatever it is called
LLAMA_LICENCE = re.compile(r"llama\s+(\d(?:\.\d)?)\s+community\s+license", re.IGNORECASE)
NOTICE = "Llama {0} is licensed under the Llama {0} Community License, Copyright © Meta Platforms, Inc. "
NOTICE += "All Rights Reserved.\n"


@dataclass(frozen=True)
class Licence:
    """`id` as the Hub names it; `name`: what a reader calls it; `files`: what travels along, by name; `llama`: the
    version of Llama whose community licence it is, or ""."""

    id: str
    name: str
    files: dict[str, bytes]
    llama: str = ""


def find_licence(base: str, vocabulary: int, file: Path | None) -> Licence:
    """The licence of the model `base` with so many tokens, whose text is in `file`; that of SmolLM2 comes with Iris.
    InputError if the text is not there, or is another one's."""
    llama = LLAMA.search(base.lower()) or vocabulary == LLAMA_3_WORDS
    if "smollm" in base.lower() and not llama:
        return Licence("apache-2.0", "Apache-2.0, as its base", {"LICENSE": own_licence()})
    if file is None or not file.is_file():
        how = f"`hf download {base} LICENSE.txt`" if llama else "its page"
        raise InputError(f"the licence of {base} has to travel along; get it with {how} and give --licence FILE")
    text = file.read_bytes()
    version = LLAMA_LICENCE.search(text.decode(errors="replace"))
    if not (llama or version):
        return Licence("other", "As its base", {"LICENSE": text})
    named = re.search(r"llama-(\d\.\d)", base.lower())
    if version is None or (named and named[1] != version[1]):
        raise InputError(f"{file} is not Meta's community licence of {base}; give that with --licence")
    files = {"LICENSE": text, "NOTICE": NOTICE.format(version[1]).encode()}
    return Licence(f"llama{version[1]}", f"Llama {version[1]} Community License", files, version[1])


def own_licence() -> bytes:
    """Iris' own licence: of the package that is installed, else of the clone that this file lies in."""
    clone = Path(__file__).parents[3] / "LICENSE"
    for own in metadata.distributions(name="iris-poetry-lab"):
        if text := own.read_text("licenses/LICENSE"):  # an old egg-info, which src/ may hold as well, has none
            return text.encode()
    if not clone.is_file():
        raise RunError("the licence of Iris is missing from this installation; install Iris again")
    return clone.read_bytes()


def evaluations(adapter: str, model: str, results: Path) -> list[list[Scored]]:
    """The evaluations in the folder `results` of the adapter with this digest on `model`, each group with its base.
    InputError for a damaged record."""
    kept = {}
    for path, one in record.load(results).items():
        of_adapter = (one.adapter or {}).get("digest") == adapter
        if of_adapter or (one.kind == "evaluation" and not one.adapter and one.model["id"] == model):
            kept[path] = one
    return [group for group in compare.evaluations(kept) if any(one.record.adapter for one in group)]


def data_sources(data: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The data sets of a run as its record has them, but `id` without folders; and `hub`: whether it was read there."""
    sources = []
    for part in ((data or {}).get("parts") or [data]) if data else []:
        hub = bool(COMMIT.fullmatch(str(part.get("revision"))))
        sources.append(part | {"hub": hub, "id": part["id"] if hub else Path(part["id"]).name})
    return sources


def linked(name: str, kind: str = "") -> str:
    """`name` as Markdown, with its address where it is a repository of the Hub."""
    return f"[{name}](https://huggingface.co/{kind}{name})" if "/" in name else name


def write(template: str, **values: Any) -> str:
    """A card: the words in `template` with these values."""
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "keep_trailing_newline": True}
    words = Environment(loader=PackageLoader("iris.publish", "."), **options)
    words.globals |= {"linked": linked, "short": short, "with_error": with_error, "tasks": TASKS, "fixed": FIXED}
    return words.get_template(template).render(**values)


def model_card(
    repo: str, exported: Record, terms: Licence, groups: list[list[Scored]], ggufs: dict[str, int], space: str | None
) -> str:
    """The model's README.md. `ggufs`: the sizes of the GGUF files in bytes by name, the smallest whole model first."""
    recipe = {key: value for key, value in (exported.recipe or {}).items() if key not in OF_THE_RUN_ONLY}
    return write(
        "card.md.jinja",
        repo=repo,
        exported=exported,
        terms=terms,
        space=space,
        sources=data_sources(exported.data),
        recipe={key: "/".join(value) if isinstance(value, list) else value for key, value in recipe.items()},
        measured=[one for group in groups for one in group if one.record.adapter],
        ggufs=ggufs,
        quant=next(iter(ggufs)).rpartition("-")[2].removesuffix(".gguf"),
        ask=Wish("the sea at night", "haiku").request(),
        requests=[Wish("THEME", form).request() for form in FORMS],
        mood=MOODS[0],
    )


def requirements() -> list[str]:
    """What a Space installs: what Iris itself needs, and Gradio, in the versions that pyproject.toml names."""
    wanted = metadata.requires("iris-poetry-lab") or []
    return [each.partition(";")[0].strip() for each in wanted if ";" not in each or 'extra == "app"' in each]
