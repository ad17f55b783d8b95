"""From a finished run to a folder that anybody can run: merge -> GGUF.

Run as: iris export --run runs/first --quant f16,q8_0 --out exports/first

OUT/ holds merged/ (a Hugging Face folder in fp16, see merge.py), NAME-F16.gguf and its quantizations, adapter/, a
Modelfile for Ollama, record.json, and SHA256SUMS over all of it. The quantization `lora` is the adapter alone, for an
engine that has the base; with no other nothing is merged. OUT is made beside its place and renamed at the
end: a failed export leaves nothing.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import InputError, RunError, hub, record
from ..model import smollm2
from ..recipe import Recipe, one_of

SUMS = "SHA256SUMS"
SPARE = 64 << 20  # bytes to leave free on the disk
# How chat templates write a turn: what stands before its role, between role and words, and after the words.
FAMILIES = [("<|im_start|>", "\n", "<|im_end|>\n"), ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")]
TALK = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
MARK = "\U000f0000"  # stands for what a system message says


def export(run: Path, out: Path, quants: list[str]) -> record.Record:
    """Export the run in folder `run` to the new folder `out`, once for each of `quants` (see gguf.QUANTS, and lora).
    InputError: an unfinished run, weights that are not its own, a tokenizer that llama.cpp does not know, an `out` that
    is not empty, an unknown quantization, a disk without room. RunError: a disk that fills up all the same."""
    import torch

    from ..model.load import pre_tokenizer
    from . import gguf, merge

    began = time.time()
    quants = [one_of(quant.lower(), [*gguf.QUANTS, "lora"], "quantization") for quant in dict.fromkeys(quants or [""])]
    models = [quant for quant in quants if quant != "lora"]
    training = record.read(run / "record.json")
    if (training.kind, training.status) != ("training", "finished"):
        raise InputError(f"{run} holds a {training.status} {training.kind}, not a finished training: train --resume")
    if record.folder_digest(run / "adapter") != (training.adapter or {})["digest"]:
        raise InputError(f"the weights in {run / 'adapter'} are not those of its record; put them back, or train again")
    base = find_base(training)
    if models and pre_tokenizer(merge.read_json(run / "adapter" / "tokenizer.json")) is None:
        raise InputError(f"llama.cpp does not know the tokenizer in {run / 'adapter'}; export --quant lora alone")

    recipe = training.recipe or {}
    # a run from before there were plans has no such field
    taught = Recipe(data=recipe["data"], plans=recipe.get("plans", 0)).plan_share > 0
    result = record.Record("export", out.name, training.model, recipe=recipe, data=training.data)
    result.adapter = (training.adapter or {}) | {"path": "adapter"}
    result.settings = {"quants": quants, "plans": taught}
    name = f"{Path(training.model['id']).name}-Iris"
    with scratch_beside(out) as scratch:
        size = sum(file.stat().st_size for file in base.glob(merge.WEIGHTS)) if models else 0
        size += sum(packed.nbytes for quant in models for _, packed in gguf.plan(base, quant).values())
        if (free := shutil.disk_usage(scratch).free) < size + SPARE:
            needs = f"{scratch.parent} has {free / 1e9:.1f} GB free and the export takes {size / 1e9:.1f} GB"
            raise InputError(f"{needs}; free some room, name fewer quantizations or choose another disk")
        shutil.copytree(run / "adapter", scratch / "adapter", ignore=shutil.ignore_patterns("*.bin"))  # pickles
        if "lora" in quants:
            gguf.write_adapter(run / "adapter", scratch / f"{name}-LoRA.gguf", base, taught)
        if models:
            merged = scratch / "merged"
            merge.merge(base, run / "adapter", merged, torch.bfloat16 if "bf16" in quants else torch.float16)
            pin_date(merged)
            for quant in models:
                gguf.write(merged, scratch / f"{name}-{quant.upper()}.gguf", quant, name, taught)
            if text := modelfile(merged, smallest(scratch).name):
                (scratch / "Modelfile").write_text(text, encoding="utf-8")
            else:
                print("no Modelfile was written: give Ollama this chat template by hand", file=sys.stderr)
        for path in scratch.glob("*.gguf"):
            result.measures[f"bytes_{path.stem.rpartition('-')[2].lower()}"] = path.stat().st_size
        result.measures |= {"wall_seconds": round(time.time() - began, 1), "peak_memory_gb": record.peak_memory_gb()}
        result.status = "finished"
        record.write(result, scratch / "record.json")
        write_sums(scratch)
    return result


def find_base(training: record.Record) -> Path:
    """The folder of the 16-bit base that a run was trained on. InputError if it is gone, or another one by now."""
    model = training.model
    name = model["id"].removesuffix("-bnb-4bit").removesuffix("-unsloth")  # Unsloth's 4-bit copies of a 16-bit model
    if model["revision"] == smollm2.REVISION:
        folder = smollm2.folder()
    elif model["revision"]:
        folder = hub.snapshot(name, model["revision"] if name == model["id"] else hub.revision(name))
    else:
        folder = Path((training.recipe or {})["model"])
    if model["digest"] not in (None, record.folder_digest(folder)):
        raise InputError(f"the run was trained on another base than {folder}: the weights differ; put those back")
    return folder


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A new folder on the disk of `out`, renamed to `out` if all goes well and removed if not (Ctrl-C included).
    InputError if `out` is not empty; RunError if it cannot be written, on a full disk say."""
    from safetensors import SafetensorError  # what it raises where a file cannot be written

    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; choose another folder or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            made = Path(scratch) / out.name
            made.mkdir()
            yield made
            os.replace(made, out)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out} could not be written ({error}), and nothing was kept; mend that and try again") from None


def pin_date(folder: Path) -> None:
    """Fix the date that Llama's template writes into every prompt to the one of training (template.TEMPLATE_DATE), so
    that any engine asks in the words the adapter learned. A caller's date_string still wins."""
    from ..data.template import TEMPLATE_DATE

    pin = f'{{%- if date_string is not defined %}}{{%- set date_string = "{TEMPLATE_DATE}" %}}{{%- endif -%}}\n'
    template = folder / "chat_template.jinja"
    if "strftime_now" in (text := template.read_text(encoding="utf-8")):
        template.write_text(pin + text, encoding="utf-8")


def modelfile(folder: Path, weights: str) -> str | None:
    """Ollama's Modelfile for the GGUF named `weights`: the chat template of the Hugging Face `folder`, its default
    system message, its end of turn. No BOS: Ollama adds it. None where the turns are neither ChatML's nor Llama 3's."""
    from ..data.template import load_tokenizer, render

    tokenizer = load_tokenizer(str(folder))
    bos = tokenizer.bos_token if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else ""

    def rendered(talk: list[dict[str, str]], ask: bool = False) -> str:
        try:
            return render(tokenizer, talk, add_generation_prompt=ask).removeprefix(bos or "")
        except Exception:  # a template is somebody else's program: it may raise anything
            return ""

    bare = rendered(TALK)
    for before, between, after in FAMILIES:
        turns = "".join(f"{before}{turn['role']}{between}{turn['content']}{after}" for turn in TALK)
        if bare.endswith(turns):
            break
    else:
        return None
    head, ask = bare.removesuffix(turns), rendered(TALK, ask=True).removeprefix(bare)
    with_system = rendered([{"role": "system", "content": MARK}, *TALK]).removesuffix(turns)
    left, accepted, right = with_system.partition(MARK)
    default = head.removeprefix(left).removesuffix(right)
    if accepted and head and left + default + right != head:
        return None
    if accepted:
        said = f"{left}{{{{ .System }}}}{right}"
        head = said if head else f"{{{{ if .System }}}}{said}{{{{ end }}}}"
    turn = f'{{{{ if ne .Role "system" }}}}{before}{{{{ .Role }}}}{between}{{{{ .Content }}}}{after}{{{{ end }}}}'
    lines = [f"FROM ./{weights}", f'TEMPLATE """{head}{{{{ range .Messages }}}}{turn}{{{{ end }}}}{ask}"""']
    if accepted and default:
        lines.append(f'SYSTEM """{default}"""')
    return "\n".join([*lines, f'PARAMETER stop "{after.strip()}"\n'])


def smallest(folder: Path) -> Path:
    """The smallest whole model in an exported folder. InputError if it holds none."""
    whole = [file for file in folder.glob("*.gguf") if not file.name.endswith("-LoRA.gguf")]
    if not whole:
        raise InputError(f"{folder} holds no whole model as GGUF; export the run again with --quant q8_0")
    return min(whole, key=lambda file: file.stat().st_size)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files in and below `folder`, as `sha256sum -c` reads it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{record.file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    record.write_atomic(folder / SUMS, "".join(lines).encode())


def check_sums(folder: Path) -> None:
    """RunError if a file of an exported folder is missing or damaged; InputError if it is no exported folder."""
    if not (folder / SUMS).exists():
        raise InputError(f"{folder} has no {SUMS}; give a folder that `iris export` wrote")
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file() or record.file_digest(folder / name) != digest:
            raise RunError(f"{folder / name} is missing or damaged; export again")
