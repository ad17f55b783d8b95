"""What the page stands on (app.py): settings, the models they name, its inlined style, and the answer to a wrong call.

Of Iris only this module and the page import Gradio.
"""

from __future__ import annotations

import base64
import html
import json
import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.route_utils import FnIndexInferError
from starlette.requests import Request
from starlette.responses import JSONResponse

from . import embedded
from .hub import said_plainly
from .poet import Poet
from .room import SEATS


def settings(file: Path) -> dict[str, str]:
    """IRIS_MODEL, IRIS_BASE and IRIS_CARD, from the environment or else the JSON `file`; "" where unset."""
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: os.environ.get(name) or stored.get(name, "") for name in ("IRIS_MODEL", "IRIS_BASE", "IRIS_CARD")}


def model_file(name: str) -> Path:
    """The GGUF file that a setting names; from the Hub where it says HUB-REPO:FILE or HUB-REPO@REVISION:FILE."""
    if name in ("", "smollm2"):
        return embedded.gguf()
    repo, colon, file = name.partition(":")
    if not colon or Path(name).exists():
        return Path(name)
    from huggingface_hub import hf_hub_download

    repo, _, revision = repo.partition("@")
    with said_plainly(name):
        return Path(hf_hub_download(repo, file, revision=revision or None))


def voices(wanted: dict[str, str]) -> tuple[dict[str, Poet], dict[str, str]]:
    """The poets of the settings, and what the page calls them; both by `tuned` and, where there is one, `base`.
    InputError or RunError if a model cannot be had or loaded."""
    model, base = wanted["IRIS_MODEL"], wanted["IRIS_BASE"]
    files = {"tuned": model_file(model)} if model else {}
    if base or not model:
        files["base"] = model_file(base)
    poets = {key: Poet(file, n_parallel=SEATS) for key, file in files.items()}
    if len(files) > 1:
        return poets, {"tuned": "the tuned model", "base": "its base"}
    return poets, {key: file.stem for key, file in files.items()}


def foot(wanted: dict[str, str]) -> str:
    """The page's last line as HTML: whose model it is."""
    card, name = wanted["IRIS_CARD"], wanted["IRIS_MODEL"]
    model = html.escape(Path(name.rpartition(":")[2]).stem or "SmolLM2-135M-Instruct")
    link = f'<a href="{html.escape(card)}" rel="noopener">{model}</a>' if card else model
    built = "Built with Llama. " if "llama" in f"{name} {card}".lower() else ""
    return f"{built}Model: {link}. Nothing you write here is kept."


def head(assets: Path) -> str:
    """The page's own style, script and fonts, inline: no request leaves the page."""
    faces = ""
    for style, file in (("normal", "garamond.woff2"), ("italic", "garamond-italic.woff2")):
        data = base64.b64encode((assets / file).read_bytes()).decode()
        faces += f'@font-face{{font-family:"Iris Garamond";font-style:{style};src:url(data:font/woff2;base64,{data})}}'
    css, script = ((assets / name).read_text(encoding="utf-8") for name in ("room.css", "room.js"))
    return f"<style>{faces}{css}</style><script>{script}</script>"


class Page(gr.Blocks):
    """Blocks that leave the cores to the engine. A caller of /poem may leave out any value that has a default, also
    without gradio_client."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Gradio's queue looks 1,000 times a second whether somebody came: each time a thread of the engine has to stop,
        # and the others wait for it.
        self._queue.sleep_when_free, self._queue.progress_update_sleep_when_free = 0.02, 1.0

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        missing = block_fn.inputs[len(inputs) :]
        if missing and not (inputs and block_fn.api_name == "poem"):
            raise gr.Error("Too few values were sent; /poem needs a theme.", print_exception=False)
        inputs.extend(each.value for each in missing)


def _misfit(request: Request, error: Exception) -> JSONResponse:
    """The answer to a misfit. Gradio's own is a server error, and the call's words in the log."""
    return JSONResponse({"error": "This call has the wrong shape; `Use via API` on the page shows the right one."}, 400)


# what Gradio raises over an API call of the wrong shape
MISFITS = dict.fromkeys((TypeError, ValueError, KeyError, FnIndexInferError), _misfit)
