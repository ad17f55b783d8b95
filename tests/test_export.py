"""Export: the merge against PEFT, the GGUF against llama.cpp's own converter, the folder against what breaks.

The official converter and the Llama-3.2 tokenizer are fetched once, by hash; without a package index the tests that
need them are skipped and say so.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest.mock import Mock

import gguf
import numpy as np
import pytest
import torch
from libllama import LIB, Model
from small_llama import make_model

from iris import InputError, RunError, record
from iris.data.template import load_tokenizer, render
from iris.evaluate import evaluate
from iris.export import export
from iris.export import gguf as gguf_file
from iris.export.merge import merge, read_adapter
from iris.model import load
from iris.model import smollm2 as embedded
from iris.poetry import verses

SDIST = "llama-cpp-python==0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


# --- models, runs and the official converter --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, llama_tokenizer) -> Path:
    """A random model of Llama-3.2-1B's pattern (tied, grouped queries, llama3 rope), narrow, with its tokenizer."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 131072, "eos_token_id": [128001, 128008, 128009]}
    given = {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "rope_parameters": rope}
    folder = tmp_path_factory.mktemp("llama") / "Llama-3.2-Tiny"
    return make_model(folder, llama_tokenizer, dtype="bfloat16", **sizes, **given)


def make_small(folder: Path, tokenizer, seed: int = 0) -> Path:
    return make_model(folder, tokenizer, seed, "bfloat16", "300KB", num_hidden_layers=2, initializer_range=0.02)


@pytest.fixture(scope="session")
def small(tmp_path_factory, smollm2_tokenizer) -> Path:
    """A base in bf16 and in several files, its embedding not tied."""
    return make_small(tmp_path_factory.mktemp("small") / "base", smollm2_tokenizer)


def make_run(folder: Path, base: Path, **lora: object) -> Path:
    """A finished run of a random adapter on `base`, saved by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
        elif "lora_magnitude" in name:
            parameter.data *= 1 + 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder / "adapter")
    load_tokenizer(str(base)).save_pretrained(folder / "adapter")
    (folder / "adapter" / "training_args.bin").write_bytes(b"a pickle, as transformers leaves one")
    source = {"id": base.name, "revision": None, "digest": record.folder_digest(base)}
    made = record.Record("training", folder.name, source, "finished", recipe={"model": str(base), "data": "verses"})
    made.adapter = {"path": "adapter", "method": "lora", "digest": record.folder_digest(folder / "adapter")}
    record.write(made, folder / "record.json")
    return folder


def change(run: Path, status: str = "finished", **recipe: object) -> None:
    """The run's record, changed."""
    training = record.read(run / "record.json")
    training.status = status
    training.recipe |= recipe
    record.write(training, run / "record.json")


@pytest.fixture(scope="session")
def run(tmp_path_factory, small: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "lora", small)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, run: Path) -> Path:
    out = tmp_path_factory.mktemp("exports") / "poet"
    export.export(run, out, ["f16", "q8_0", "lora"])
    return out


@pytest.fixture(scope="session", params=["smollm2", "tiny_llama"])
def spoken(request, tmp_path_factory) -> tuple[Path, Path, object]:
    """A model's folder, its date pinned; its GGUF; its tokenizer."""
    folder = tmp_path_factory.mktemp("spoken") / request.param
    shutil.copytree(request.getfixturevalue(request.param), folder)
    export.pin_date(folder)
    gguf_file.write(folder, folder.with_suffix(".gguf"), "q8_0", "Name")
    return folder, folder.with_suffix(".gguf"), load_tokenizer(str(folder))


@pytest.fixture(scope="session")
def converter() -> Path:
    """llama.cpp's convert_hf_to_gguf.py, out of the source archive of llama-cpp-python."""
    folder = embedded.cache() / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", SDIST]
        if subprocess.run([*pip, "-d", str(folder)], capture_output=True).returncode:
            pytest.skip(f"{SDIST} cannot be had from the package index: the official converter is not compared")
        (packed,) = folder.glob("*.tar.gz")
        assert record.file_digest(packed) == SDIST_SHA256
        with tarfile.open(packed) as archive:
            for member in archive.getmembers():
                member.name = member.name.removeprefix("llama_cpp_python-0.3.36/vendor/llama.cpp/")
                if member.name.startswith(("conversion/", "gguf-py/", "convert_hf_to_gguf.py")):
                    archive.extract(member, folder, filter="data")
        packed.unlink()
        # imported by the converter, but not used for these tokenizers
        (folder / "sentencepiece.py").write_text("SentencePieceProcessor = None\n")
    return folder


def convert(converter: Path, model: Path, out: Path, kind: str, name: str) -> Path:
    command = [sys.executable, str(converter / "convert_hf_to_gguf.py"), str(model), "--outtype", kind]
    done = subprocess.run([*command, "--outfile", str(out), "--model-name", name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


# --- merge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_dora", [False, True])
def test_merge_is_pefts(tmp_path: Path, small: Path, use_dora: bool) -> None:
    """In fp32 the merged tensors are those of PEFT's own merge_and_unload, and the 16-bit files hold them rounded."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    adapter = make_run(tmp_path / "run", small, use_dora=use_dora) / "adapter"
    base = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        merge(small, adapter, tmp_path / str(dtype), dtype)
        files = list((tmp_path / str(dtype)).glob("*.safetensors"))
        assert len(files) > 1
        assert AutoModelForCausalLM.from_pretrained(tmp_path / str(dtype)).dtype == dtype
        for name, value in (item for file in files for item in load_file(file).items()):
            rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
            torch.testing.assert_close(value, expected[name].to(dtype), atol=2e-6, rtol=rounding)
            assert torch.equal(value, weights[name].to(dtype)) != name.endswith("_proj.weight")


def test_what_cannot_be_merged(tmp_path: Path, run: Path, small: Path) -> None:
    """fp16 ends at 65504. Merging into a quantized base would round again: the 16-bit one is asked for."""
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    values = load_file(adapter / "adapter_model.safetensors")
    for factor in (1e6, float("inf")):
        save_file({name: factor * value for name, value in values.items()}, adapter / "adapter_model.safetensors")
        with pytest.raises(RunError, match="float16 does not hold; name bf16"):
            merge(small, adapter, tmp_path / str(factor))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for other in ({"peft_type": "IA3"}, {"use_rslora": True}, {"init_lora_weights": "pissa_niter_16"}):
        (adapter / "adapter_config.json").write_text(json.dumps(config | other))
        with pytest.raises(InputError, match="of another kind than the LoRA and DoRA"):
            read_adapter(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InputError, match="export it merged"):
        gguf_file.write_adapter(adapter, tmp_path / "x.gguf", small, False)
    shutil.copytree(small, tmp_path / "4-bit")
    config = json.loads((small / "config.json").read_text()) | {"quantization_config": {"load_in_4bit": True}}
    (tmp_path / "4-bit" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no Llama in 16 bits has"):
        gguf_file.plan(tmp_path / "4-bit", "f16")


# --- GGUF against the official converter ------------------------------------------------------------------------------


def contents(path: Path) -> tuple[dict, dict]:
    """Metadata and tensors (type and bytes' hash) of a GGUF, in their order."""
    reader, tensors = gguf.GGUFReader(path), {}
    for each in reader.tensors:
        tensors[each.name] = (each.tensor_type, tuple(each.shape), hashlib.sha256(each.data.tobytes()).hexdigest())
    return {key: (field.types, field.contents()) for key, field in reader.fields.items()}, tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind"), [("smollm2", "f16"), ("smollm2", "bf16"), ("smollm2", "q8_0"), ("tiny_llama", "f16")]
)
def test_gguf_is_the_official_converters(tmp_path: Path, request, converter: Path, model: str, kind: str) -> None:
    """Tensors bit for bit, metadata key for key; indeed the same file."""
    folder, ours = request.getfixturevalue(model), tmp_path / "ours.gguf"
    theirs = convert(converter, folder, tmp_path / "theirs.gguf", kind, "Name")
    gguf_file.write(folder, ours, kind, "Name")
    assert contents(ours) == contents(theirs) and record.file_digest(ours) == record.file_digest(theirs)


@pytest.mark.slow
def test_merged_model_converts_as_officially(exported: Path, converter: Path, tmp_path: Path) -> None:
    ours = next(exported.glob("*-F16.gguf"))
    theirs = convert(converter, exported / "merged", tmp_path / "theirs.gguf", "f16", ours.stem.removesuffix("-F16"))
    assert contents(ours) == contents(theirs)


# Hashes over (name, type, bytes) of all tensors, from llama.cpp's own llama_model_quantize (cyllama 0.2.18) given the
# F16 file of SmolLM2: K-quants of rows of 576 and 1,536, so the fallbacks to blocks of 32 are among them.
@pytest.mark.parametrize(
    ("quant", "wanted"),
    [
        ("q4_0", "136730031be306ad"),
        ("q4_k_m", "bc50ed30bdce25a7"),
        pytest.param("q5_k_m", "8de3de1d110e050d", marks=pytest.mark.slow),
        pytest.param("q6_k", "b954a9fabf885fae", marks=pytest.mark.slow),
    ],
)
def test_quantized_tensors_are_llama_quantizes(tmp_path: Path, smollm2: Path, quant: str, wanted: str) -> None:
    gguf_file.write(smollm2, tmp_path / "ours.gguf", quant, "Name")
    tensors = contents(tmp_path / "ours.gguf")[1]
    assert record.digest_of({name: [int(kind), digest] for name, (kind, _, digest) in tensors.items()}) == wanted


def test_the_adapter_alone_is_the_merged_model(tmp_path: Path, exported: Path, small: Path) -> None:
    """The engine loads it beside the base; logits are the merged model's but for the rounding to F16."""
    gguf_file.write(small, tmp_path / "base.gguf", "f16", "Base")
    base, merged = Model(tmp_path / "base.gguf", n_ctx=64), Model(next(exported.glob("*-F16.gguf")), n_ctx=64)
    ids = base.tokenize("The sea at night keeps its own counsel, and the gulls keep theirs.")
    wanted, bare = merged.logits(ids), base.logits(ids)
    load, put_on = LIB.llama_adapter_lora_init, LIB.llama_set_adapters_lora
    load.restype, load.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
    adapter = ctypes.c_void_p(load(base._model, str(next(exported.glob("*-LoRA.gguf"))).encode()))
    put_on.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert adapter.value and put_on(base._context, ctypes.byref(adapter), 1, (ctypes.c_float * 1)(1)) == 0
    off, moved, size = (np.sqrt(np.mean(each**2)) for each in (wanted - base.logits(ids), wanted - bare, wanted))
    assert off < 0.1 * moved and off < 2**-9 * size


# --- the tokenizer and the template in llama.cpp ----------------------------------------------------------------------


WORDS = """
def f(x):\n\treturn x**2  # y ¦ for(int i=0;i<10;++i){a[i]+=i;} ¦ #!/bin/sh\nset -eu\n ¦ http://a.b/c?d=e#f ¦ a_b
I'm ¦ you'LL ¦ 'tis ¦ o'er ¦ 'RE ¦ can`t ¦ -- ¦ ... ¦ ?! ¦ “quoted” ¦ (a) ¦ 床前明月光 ¦ 나 보기가 역겨워 ¦ é vs e\u0301
မြန်မာ ¦ ខ្មែរ ¦ ǅ ǈ ﬁ ﬂ ¦ İstanbul ıI ¦ 👩‍👩‍👧‍👦 ¦ 🏳️‍🌈 ¦ 🇫🇷🇯🇵 ¦ ✅✔️ ¦ 👍🏽 ¦ 𝔘𝔫𝔦 ¦ \U0010ffff
3 ¦ 33 ¦ 333 ¦ 3333 ¦ 12345678901 ¦ 3.14 ¦ 1,000,000 ¦ 0x1F ¦ 1e-9 ¦ ²³ ¦ ٣٤٥ ¦ Ⅷ ¦ ½ ¦ 10:30 ¦ 2nd
<|im_start|> ¦ <|im_end|> ¦ <|endoftext|> ¦ <|eot_id|> ¦ <|begin_of_text|>
<|start_header_id|>user<|end_header_id|> ¦ <|im_start ¦ im_end|> ¦ <| ¦ |> ¦ <s> ¦ </s> ¦ [INST]
<|IM_END|> ¦ < |im_end| > ¦ <|im_end|><|im_end|> ¦ <repo_name> ¦ <file_sep>
<|reserved_special_token_0|> ¦ [PAD3] ¦ Ġ ¦ Ċ ¦ ▁
"""
SPACE = "¦ ¦  ¦\n¦\n\n\n¦\t¦ \n ¦\r\n¦\r¦a \n b¦   x¦x   ¦\xa0¦\u2003¦\u3000¦\u200b¦\ufeff¦a\xa0b¦\x0b\x0c¦\x00¦\x7f"
SPACE += "¦a\n\n  b¦  \n\t\n  ¦\u2028¦\u0085"
SCRIPTS = [range(0x20, 0x7F), range(0xA0, 0x250), range(0x370, 0x600), range(0x900, 0xE00), range(0x2000, 0x2C00)]
SCRIPTS += [range(0x3040, 0x3100), range(0x1F300, 0x1FA00)]


def strings() -> list[str]:
    """Over 2,000 strings: poems, code, scripts, emoji, white space, numbers, special-token look-alikes, mixtures."""
    chance = random.Random(7)
    rows = verses.PATH.read_text(encoding="utf-8").splitlines()[:150]
    known = [turn["value"] for row in rows for turn in json.loads(row)["conversations"]]
    known += [word for line in WORDS.strip().splitlines() for word in line.split(" ¦ ")] + SPACE.split("¦")
    mixed = ["".join(chance.choice(known) + chance.choice(("", " ", "\n")) for _ in range(3)) for _ in range(1000)]

    noise = []
    for _ in range(1000):
        scripts = chance.sample(SCRIPTS, chance.randint(1, 3))
        noise.append("".join(chr(chance.choice(chance.choice(scripts))) for _ in range(chance.randint(1, 24))))
    return [*known, *mixed, *noise]


def test_tokens_are_hugging_faces(spoken: tuple) -> None:
    """llama.cpp and the Hugging Face tokenizer agree, where <|...|> is read as words and where it is read as tokens."""
    _, file, tokenizer = spoken
    engine = Model(file, n_ctx=64)
    texts = strings()
    assert len(set(texts)) >= 2000
    wrong = []
    for text in texts:
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        parsed = tokenizer(text, add_special_tokens=True).input_ids
        if engine.tokenize(text) != plain or engine.tokenize(text, add_special=True, parse_special=True) != parsed:
            wrong.append(text)
    assert wrong == []


ENDS = {"smollm2": ["<|im_end|>", "<|endoftext|>"], "tiny_llama": ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]}


def test_chat_in_llama_cpp_and_ollama(spoken: tuple) -> None:
    """The prompt has as many tokens as with the Hugging Face template (one BOS, the date pinned), and the end-of-turn
    token ends the answer by itself."""
    import xllamacpp

    folder, file, tokenizer = spoken
    assert tokenizer.eos_token == ENDS[folder.name][0]
    asks_as_the_template(folder, tokenizer)  # in Ollama
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity, params.port = str(file), 512, -1, 0
    server = xllamacpp.Server(params)
    talks = [
        [{"role": "user", "content": "Write a haiku."}],
        [{"role": "system", "content": "You are a poet."}, {"role": "user", "content": "Go on."}],
        export.TALK,
    ]
    for talk in talks:
        ids = tokenizer(render(tokenizer, talk, add_generation_prompt=True), add_special_tokens=False).input_ids
        assert folder.name == "smollm2" or ids.count(tokenizer.bos_token_id) == 1
        for end in ENDS[folder.name]:
            forced = [[tokenizer.convert_tokens_to_ids(end), 1000.0]]
            asked = {"messages": talk, "max_tokens": 4, "logit_bias": forced, "temperature": 0}
            answer = server.handle_chat_completions(asked)
            (choice,) = answer["choices"]
            assert answer["usage"]["prompt_tokens"] == len(ids)
            assert choice["finish_reason"] == "stop" and not choice["message"]["content"]


def ollama(text: str, system: str, talk: list[dict[str, str]]) -> str:
    """What Ollama makes of a conversation by a Modelfile, its Go template carried out by hand."""
    go = r"(.*?){{ range \.Messages }}{{ if ne \.Role \"system\" }}(.*?){{ \.Role }}(.*?){{ \.Content }}(.*?)"
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    head, before, between, after, ask = re.fullmatch(go + "{{ end }}{{ end }}(.*)", template, re.DOTALL).groups()
    default = re.search(r'SYSTEM """(.*?)"""', text, re.DOTALL)
    system = system or (default[1] if default else "")
    head = re.sub(r"{{ if \.System }}(.*){{ end }}", r"\1" if system else "", head, flags=re.DOTALL)
    turns = [f"{before}{turn['role']}{between}{turn['content']}{after}" for turn in talk]
    return head.replace("{{ .System }}", system) + "".join(turns) + ask


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEMPLATES = {  # each of a base on which an export once failed, but for the first
    "plain": TURNS + ASK,
    "no system": REFUSES + TURNS + ASK,
    "thinks": TURNS + ASK.replace("assistant\n", "assistant\n<think>\n"),
    "numbered": TURNS.replace("<|im_start|>", "<|im_start|>{{ loop.index }} ") + ASK,
    "braces": TURNS.replace("<|im_start|>", "<|im_start|>{{ '{{' }}") + ASK,
}


def asks_as_the_template(folder: Path, tokenizer, systems: tuple[str, ...] = ("", "Be brief.")) -> None:
    """Without the BOS, which Ollama adds, and with the date pinned; its stop is the end of turn."""
    text = export.modelfile(folder, "x.gguf")
    assert text.startswith("FROM ./x.gguf\n") and text.endswith(f'PARAMETER stop "{tokenizer.eos_token}"\n')
    bos = "<|begin_of_text|>" if tokenizer.bos_token == "<|begin_of_text|>" else ""
    for system in systems:
        turns = [{"role": "system", "content": system}] * bool(system) + export.TALK
        assert bos + ollama(text, system, export.TALK) == render(tokenizer, turns, add_generation_prompt=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_modelfile_of_another_template(tmp_path: Path, smollm2: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    export.pin_date(folder)
    if name in ("numbered", "braces"):
        assert export.modelfile(folder, "x.gguf") is None
    else:
        asks_as_the_template(folder, load_tokenizer(str(folder)), ("",) if name == "no system" else ("", "Be brief."))


def test_an_added_token_is_exported(tmp_path: Path, smollm2_tokenizer) -> None:
    """One that stands in llama.cpp's test text, by which pre-tokenizers are told apart."""
    tokenizer = load_tokenizer(str(smollm2_tokenizer.name_or_path))
    tokenizer.add_tokens(["🚀"])
    gguf_file.write(make_small(tmp_path / "base", tokenizer), tmp_path / "m.gguf", "q8_0", "Name")
    engine = Model(tmp_path / "m.gguf", n_ctx=64)
    for text in ("🚀", "up 🚀 and away", "no rocket 🌊"):
        assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_what_cannot_be_exported_is_told_before_training(small: Path, smollm2_tokenizer, small_tokenizer, capsys):
    source = load.resolve(str(small))
    load.check(source, smollm2_tokenizer)
    assert not capsys.readouterr().out
    load.check(source, small_tokenizer)
    assert "`iris export` will refuse" in capsys.readouterr().out


# --- the folder -------------------------------------------------------------------------------------------------------


def test_exported_folder(exported: Path, run: Path) -> None:
    result = record.read(exported / "record.json")
    assert (result.kind, result.status) == ("export", "finished")
    names = {path.name for path in exported.iterdir()}
    weights = {f"{result.model['id']}-Iris-{quant}.gguf" for quant in ("F16", "Q8_0", "LoRA")}
    assert names == {*weights, "merged", "adapter", "Modelfile", "record.json", export.SUMS}
    assert next(exported.glob("*-Q8_0.gguf")).name in (exported / "Modelfile").read_text()
    assert not list(exported.rglob("*.bin"))  # nobody has to trust a pickle
    for name in weights:
        quant = name.removesuffix(".gguf").rpartition("-")[2].lower()
        assert result.measures[f"bytes_{quant}"] == (exported / name).stat().st_size
    listed = {line.split("  ")[1] for line in (exported / export.SUMS).read_text().splitlines()}
    assert listed == {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()} - {export.SUMS}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", export.SUMS], cwd=exported, check=True)


def test_a_gguf_is_evaluated(tmp_path: Path, exported: Path) -> None:
    def score(model: Path) -> record.Record:
        return evaluate.evaluate(str(model), ["poetry_verses"], tmp_path / f"{model.name}.json", limit=3)[0]

    file = next(exported.glob("*-Q8_0.gguf"))
    merged, q8_0 = score(exported / "merged"), score(file)
    values = [one.tasks["poetry_verses"]["value"] for one in (merged, q8_0)]
    assert values[1] == pytest.approx(values[0], rel=0.02) and values[1] != values[0]
    assert q8_0.model["id"] == file.name and q8_0.model["digest"] == record.file_digest(file)
    with pytest.raises(InputError, match="no merged/ beside it"):
        score(shutil.copy(file, tmp_path / "alone.gguf"))
    with pytest.raises(InputError, match="there is no"):
        score(tmp_path / "gone.gguf")


def test_bad_arguments(tmp_path: Path, run: Path, exported: Path) -> None:
    out = tmp_path / "out"
    for quants in (["q9"], []):
        with pytest.raises(InputError, match="unknown quantization '.*known: f16, bf16.*lora"):
            export.export(run, out, quants)
    with pytest.raises(InputError, match="exists and is not empty"):
        export.export(run, exported, ["f16"])
    with pytest.raises(InputError, match="holds a finished export, not a finished training"):
        export.export(exported, out, ["f16"])
    shutil.copytree(run, tmp_path / "run")
    for status in ("running", "stopped", "failed"):
        change(tmp_path / "run", status)
        with pytest.raises(InputError, match=f"holds a {status} training.*--resume"):
            export.export(tmp_path / "run", out, ["f16"])
    assert not out.exists()


def test_the_gguf_says_whether_it_was_taught_plans(tmp_path: Path, run: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run")  # of before there were plans
    for name, taught in (("before", False), ("taught", True)):
        out = tmp_path / name
        assert export.export(run, out, ["lora"]).settings["plans"] == taught
        assert {path.name for path in out.iterdir()} == {"adapter", "base-Iris-LoRA.gguf", "record.json", export.SUMS}
        assert gguf.GGUFReader(out / "base-Iris-LoRA.gguf").fields["iris.plans"].contents() == taught
        change(run, plans=None)


def test_another_base_adapter_or_tokenizer(tmp_path: Path, run: Path, small: Path, smollm2_tokenizer) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    change(run, model=str(make_small(tmp_path / "other", smollm2_tokenizer, seed=1)))
    with pytest.raises(InputError, match=r"another base.*the weights differ"):
        export.export(run, tmp_path / "out", ["f16"])
    change(run, model=str(small))
    vocabulary = json.loads((run / "adapter/tokenizer.json").read_text())
    vocabulary["pre_tokenizer"] = None
    (run / "adapter/tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match="llama.cpp does not know the tokenizer"):
        export.export(run, tmp_path / "out", ["q8_0"])
    weights = run / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="are not those of its record"):
        export.export(run, tmp_path / "out", ["f16"])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out-*"))


def test_a_full_disk_or_ctrl_c_leaves_nothing(tmp_path: Path, run: Path, monkeypatch) -> None:
    """A full disk is seen before the work where it can be, cleaned up after where it cannot."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(InputError, match=r"GB free and the export takes .* GB"):
        export.export(run, tmp_path / "out", ["q8_0"])
    monkeypatch.undo()

    full = OSError(errno.ENOSPC, "No space left on device")
    for failure, told, match in (
        (full, RunError, "No space left on device.*nothing was kept"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ):
        monkeypatch.setattr(gguf_file, "write", Mock(side_effect=failure))
        with pytest.raises(told, match=match):
            export.export(run, tmp_path / "out", ["q8_0"])
        assert list(tmp_path.iterdir()) == []


def test_unsloths_adapters_name_a_4_bit_base(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export.hub, "revision", Mock(return_value="newest"))
    monkeypatch.setattr(export.hub, "snapshot", snapshot := Mock(return_value=tmp_path))
    for model in ("unsloth/Llama-3.2-1B-Instruct", "unsloth/Llama-bnb-4bit", "unsloth/Llama-unsloth-bnb-4bit"):
        export.find_base(record.Record("training", "x", {"id": model, "revision": "abc", "digest": None}))
    asked = [call.args for call in snapshot.call_args_list]
    assert asked == [("unsloth/Llama-3.2-1B-Instruct", "abc")] + [("unsloth/Llama", "newest")] * 2
