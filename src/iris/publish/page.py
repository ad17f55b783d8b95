"""The poetry room as a folder that any static server serves: the model writes in the visitor's own browser.

    iris export --page DIR && python -m http.server --directory DIR

The page asks no other host for anything, unless its model lies on the Hub. The model's file is cut into parts, each
known by its SHA-256 (assets/engine.js).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from string import Template
from typing import Any

from .. import InputError
from ..export.export import check_sums, scratch_beside, smallest
from ..model import smollm2
from ..poetry.plan import NEAR, NEUTRAL, end_words
from ..poetry.poet import VOICE, Poet, has_plans
from ..space.settings import ASSETS, foot
from ..space.sheet import markup
from .engines import write_engines, write_iris

ENGINE = ("engine.js", "verse.js")
FILES = "static.js sw.js page.js leaf.js picture.js english.js OFL.txt".split()
FONTS = {"normal": "garamond.woff2", "italic": "garamond-italic.woff2"}
PART = 16 << 20  # bytes: any static host takes files of this size, and a download that breaks off loses no more
LIMIT = 2 << 30  # bytes that a browser holds in one file
DRAFTS = 6  # of a poem's next lines, before the best of them is taken


def export_page(out: Path, export: Path | None = None) -> None:
    """Write the page to the new folder `out`: of the smallest file in the folder `export`, as `iris export` wrote it,
    or with the voice that comes with Iris. InputError for a folder that is not new or a model that is too large."""
    with scratch_beside(out) as scratch, tempfile.TemporaryDirectory() as folder:
        if export:
            check_sums(export)
            model = smallest(export)
        else:
            from ..export.gguf import write_voice

            model = Path(folder) / "SmolLM2-135M-Instruct-Iris.gguf"
            write_voice(smollm2.gguf(), VOICE, model)
        write_page(scratch, model)
    print(f"{out} holds the page; see it with python -m http.server --directory {out}")


def write_page(folder: Path, model: Path, url: str = "", card: str = "") -> None:
    """Write the page into a folder. model: a GGUF file; url: where a browser finds that file, if not in this folder;
    card: the web address of its card. InputError for a model that no browser holds."""
    if (size := model.stat().st_size) > LIMIT:
        raise InputError(f"{model.name} has {size / 1e9:.1f} GB and a browser holds 2; export a smaller --quant")
    engine = write_engine(folder)
    for name in (*FILES, *FONTS.values()):
        shutil.copyfile(ASSETS / name, folder / name)
    style = (ASSETS / "room.css").read_text(encoding="utf-8")
    for slant, name in FONTS.items():
        style += f'@font-face {{ font-family: "Iris Garamond"; font-style: {slant}; src: url({name}); }}\n'
    (folder / "static.css").write_text(f"{style}body {{ margin: 0; }}\n", encoding="utf-8")
    rest = ', run here by <span id="engine">llama.cpp</span>. Nothing you write leaves your browser.'
    room = markup(ASSETS / "room.html", {"tuned": model.stem}, foot(model.name, card, rest), "in your own browser")
    hosts = f"{'/'.join(url.split('/')[:3])} https://*.hf.co" if url else ""  # the Hub keeps large files there
    page = Template((ASSETS / "static.html").read_text(encoding="utf-8")).substitute(
        hosts=hosts, room=room, engine=engine
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    parts = cut(model, folder, url)
    taught = has_plans(model)
    told = {"engine": engine, "parts": parts, "taught": taught, "drafts": DRAFTS, "known": known(model)}
    (folder / "room.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def write_engine(folder: Path) -> str:
    """Write all that writes and judges into a folder in `folder`, named by what it holds: a browser that has it need
    not ask whether it is the newest (assets/sw.js). Returns its name."""
    write_engines(folder / "engine")
    write_iris(folder / "engine" / "iris.zip")
    for name in ENGINE:
        shutil.copyfile(ASSETS / name, folder / "engine" / name)
    digest = hashlib.sha256()
    for file in sorted((folder / "engine").iterdir()):
        digest.update(file.read_bytes())
    return (folder / "engine").rename(folder / f"engine-{digest.hexdigest()[:12]}").name


def known(model: Path) -> dict[str, dict[str, float]]:
    """What every plan asks of a model (plan.nearness), asked here once: {text: {word: log-likelihood}}."""
    poet, found = Poet(model, n_parallel=1), {}
    for prompt in (NEAR.format(theme=theme) for theme in NEUTRAL):
        likely = poet.likely(prompt)
        found[prompt] = {word: round(likely[word], 2) for word in end_words() if word in likely}
    return found


def cut(model: Path, folder: Path, url: str) -> list[dict[str, Any]]:
    """A model's parts as assets/engine.js reads them; without a url each is written into the folder's model/."""
    parts: list[dict[str, Any]] = []
    with open(model, "rb") as handle:
        while data := handle.read(PART):
            digest = hashlib.sha256(data).hexdigest()
            part = {"url": url, "from": handle.tell() - len(data), "bytes": len(data), "sha256": digest}
            if not url:
                (folder / "model").mkdir(exist_ok=True)
                (folder / "model" / digest[:16]).write_bytes(data)
                part |= {"url": f"model/{digest[:16]}", "from": None}
            parts.append(part)
    return parts
