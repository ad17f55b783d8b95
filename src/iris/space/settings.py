"""What the room (app.py) stands on: its settings, the models they name, and its style and words."""

import base64
import html
import json
import os
from pathlib import Path

from ..hub import translate_errors
from ..model import smollm2
from ..poetry.poet import VOICE, Poet

ASSETS = Path(__file__).with_name("assets")


def settings(file: Path) -> dict[str, str]:
    """IRIS_MODEL, IRIS_BASE and IRIS_CARD, from the environment or else the JSON `file`; "" where unset."""
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: os.environ.get(name) or stored.get(name, "") for name in ("IRIS_MODEL", "IRIS_BASE", "IRIS_CARD")}


def open_poet(name: str) -> Poet:
    """The poet that a setting names: "" or `voice` is the one that comes with Iris, an adapter on SmolLM2; `smollm2`
    is that without it; a GGUF file, from the Hub where it says HUB-REPO:FILE or HUB-REPO@REVISION:FILE. InputError or
    RunError if it cannot be had or loaded."""
    if name in ("", "voice", "smollm2"):
        return Poet(smollm2.gguf(), adapter=None if name == "smollm2" else VOICE)
    repo, colon, file = name.partition(":")
    if not colon or Path(name).exists():
        return Poet(name)
    from huggingface_hub import hf_hub_download

    repo, _, revision = repo.partition("@")
    with translate_errors(name):
        file = hf_hub_download(repo, file, revision=revision or None)
    return Poet(file)


def voices(wanted: dict[str, str]) -> tuple[dict[str, Poet], dict[str, str]]:
    """The poets of the settings, and what the page calls them; both by `tuned` and, where there is one, `base`.
    InputError or RunError if a model cannot be had or loaded."""
    model, base = wanted["IRIS_MODEL"], wanted["IRIS_BASE"]
    poets = {"tuned": open_poet(model)}
    if base:
        return poets | {"base": open_poet(base)}, {"tuned": "the tuned model", "base": "its base"}
    return poets, {"tuned": Path(model).stem or "Iris' own voice"}


def foot(wanted: dict[str, str]) -> str:
    """The page's last line as HTML: whose model it is."""
    card, name = wanted["IRIS_CARD"], wanted["IRIS_MODEL"]
    model = html.escape(Path(name.rpartition(":")[2]).stem or "SmolLM2-135M-Instruct")
    link = f'<a href="{html.escape(card)}" rel="noopener">{model}</a>' if card else model
    built = "Built with Llama. " if "llama" in f"{name} {card}".lower() else ""
    return f"{built}Model: {link}. The server keeps nothing you write; your browser remembers your last poems."


def head() -> str:
    """The page's style and fonts, inline: letters and lines stand where they belong from the first paint on."""
    style = ""
    for slant, file in (("normal", "garamond.woff2"), ("italic", "garamond-italic.woff2")):
        data = base64.b64encode((ASSETS / file).read_bytes()).decode()
        style += f'@font-face{{font-family:"Iris Garamond";font-style:{slant};src:url(data:font/woff2;base64,{data})}}'
    return f"<style>{style}{''.join((ASSETS / name).read_text() for name in ('room.css', 'gradio.css'))}</style>"
