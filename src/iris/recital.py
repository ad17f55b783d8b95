"""Poems by a base and by its tuned model, asked alike, with transformers: no GGUF is needed, and any device will do."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from . import chat, hardware, poet
from .demo import THEMES
from .model import resolve
from .poetry.verse import judge

SAMPLING = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1, "max_new_tokens": 96}  # as poet.py does


def recite(model: str, adapter: Path, seed: int = 7) -> list[dict[str, str]]:
    """One {"form", "theme", "base", "tuned"} for each of demo.THEMES. Errors as of `model.resolve`."""
    source = resolve(model)
    tokenizer: Any = chat.load_tokenizer(source.path, source.hub_revision)
    tokenizer.padding_side = "left"
    dtype, device = hardware.dtype(hardware.precision("auto")), hardware.device()
    base: Any = AutoModelForCausalLM.from_pretrained(source.path, revision=source.hub_revision, dtype=dtype)
    both = PeftModel.from_pretrained(base.to(device), str(adapter)).eval()
    asked = [[{"role": "user", "content": poet.request(theme, form)}] for form, theme in THEMES]
    ids = [chat.encode(tokenizer, messages, add_generation_prompt=True).input_ids for messages in asked]
    prompts = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)

    def write() -> list[str]:
        torch.manual_seed(seed)
        written = both.generate(**prompts, **SAMPLING)[:, prompts["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]

    with both.disable_adapter():
        before = write()
    return [
        {"form": form, "theme": theme, "base": base, "tuned": tuned}
        for (form, theme), base, tuned in zip(THEMES, before, write(), strict=True)
    ]


def beside(poems: list[dict[str, str]]) -> str:
    """The poems of `recite` as a table in HTML, before and after, each with what the judge says of its form."""

    def cell(poem: str, form: str) -> str:
        verdict = judge(poem, form)
        told = "keeps its form" if verdict.keeps else verdict.reasons[0]
        lines = html.escape(poem).replace("\n", "<br>")
        return f'<td style="text-align:left; vertical-align:top">{lines}<br><i>({html.escape(told)})</i></td>'

    rows = "".join(
        f"<tr><th>{one['form']}<br>{one['theme']}</th>{cell(one['base'], one['form'])}{cell(one['tuned'], one['form'])}"
        for one in poems
    )
    return f"<table><tr><th></th><th>before</th><th>after</th></tr>{rows}</table>"
