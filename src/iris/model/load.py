"""Base and adapter: names resolved, weights loaded, the adapter put on. The only importer of unsloth."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import InputError, hub
from ..hub import translate_errors
from ..recipe import Recipe, one_of
from ..record import file_digest, folder_digest
from . import hardware, smollm2

ALIASES = {
    "smollm2": smollm2.ID,
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
}
# llama.cpp's names for the pre-tokenizers, by the hash of the ids of its test text (convert_hf_to_gguf_update.py).
PRE_TOKENIZERS = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
}
TEST_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) "
    "✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 "
    "3.3 3..3 3...3 កាន់តែពិសេសអាច😁 "
    "?我想在"
    "apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its public id, the folder or Hub id to load, its revision, the digest of its weights
    (folders only), and its config.json."""

    id: str
    path: str
    revision: str | None
    digest: str | None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def hub_revision(self) -> str | None:
        """The revision to ask the Hub for; None for a folder."""
        return self.revision if self.path == self.id else None

    def as_dict(self) -> dict[str, Any]:
        """id, revision and digest, as a record keeps them."""
        return {"id": self.id, "revision": self.revision, "digest": self.digest}


def resolve(model: str) -> Source:
    """An alias, a folder or a Hub id -> Source. InputError if it is none of these or no Llama-architecture model."""
    is_path = Path(model).exists() or model.startswith((".", "/", "~"))
    name = ALIASES.get(model, model)
    if model == "smollm2":
        folder = smollm2.folder()
        return Source(smollm2.ID, str(folder), smollm2.REVISION, folder_digest(folder), read_config(folder))
    if Path(model).is_dir():
        config = read_config(Path(model))
        if not list(Path(model).glob("*.safetensors")):
            raise InputError(f"{model} has no *.safetensors weights; save the model with safe serialization")
        return Source(Path(model).resolve().name, model, None, folder_digest(model), config)
    if name.count("/") == 1 and not is_path:
        commit = hub.revision(name)
        # all of it now, with patience: from_pretrained finds it in the cache
        return Source(name, name, commit, None, read_config(hub.snapshot(name, commit)))
    if "/" in model or is_path:
        raise InputError(f"{model} is not a model folder (config.json and safetensors); give one, an alias or a Hub id")
    return Source(one_of(model, list(ALIASES), "model"), model, None, None)


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{folder} is not a model: it has no readable config.json") from None
    if (kind := config.get("model_type")) != "llama":
        raise InputError(f"{folder} is of type {kind}; Iris trains models of the Llama architecture")
    return config


def resolve_gguf(file: Path) -> Source:
    """A file of an export (see export.py). InputError if it is not there, or its tokenizer in merged/ is not."""
    if not file.is_file():
        raise InputError(f"there is no {file}; give a GGUF file of `iris export`, a model folder, an alias or a Hub id")
    if not (file.parent / "merged" / "tokenizer.json").exists():
        raise InputError(f"{file} has no merged/ beside it, which has its tokenizer; give a file where it was exported")
    return Source(file.name, str(file), None, file_digest(file))


def prepare(recipe: Recipe) -> None:
    """To be called before transformers is imported: Unsloth patches it, and only what comes after it. InputError where
    it cannot start, as without a GPU."""
    if recipe.engine == "unsloth":
        try:
            import unsloth  # noqa: F401
        except (ImportError, NotImplementedError) as error:
            raise InputError(f"engine=unsloth cannot start here ({error}); leave engine=peft") from None


def check(source: Source, tokenizer: Any) -> None:
    """InputError for a base on which training, or the export after it, would only fail later: a token without an
    embedding, or rope scaling that llama.cpp's Llama lacks; tells of a tokenizer that the export will refuse."""
    tokens, embeddings = 1 + max(tokenizer.get_vocab().values()), source.config["vocab_size"]
    if tokens > embeddings:
        many = f"the tokenizer of {source.id} has {tokens:,} tokens and its embedding {embeddings:,}"
        raise InputError(f"{many}; remove the added tokens, or resize the embedding and save the model")
    rope = source.config.get("rope_parameters") or source.config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise InputError(f"rope scaling {kind!r} is not supported; only the one of Llama 3.1 and later is")
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if not fast or pre_tokenizer(json.loads(fast.to_str())) is None:
        print(f"llama.cpp does not know the tokenizer of {source.id}: `iris export` will refuse what is trained on it")


def pre_tokenizer(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer.json with these contents splits text before merging; None if it has none
    that we know. Added tokens do not matter, though one of them may be in the test text."""
    from tokenizers import Tokenizer

    bare = tokenizer | {"added_tokens": [], "truncation": None, "padding": None}
    ids = Tokenizer.from_str(json.dumps(bare)).encode(TEST_TEXT).ids
    return PRE_TOKENIZERS.get(hashlib.sha256(str(ids).encode()).hexdigest())


def load(source: Source, recipe: Recipe, precision: str, attention: str = "sdpa") -> Any:
    """The frozen base of `recipe` with a fresh fp32 adapter on it: LoRA (Hu et al. 2021) or DoRA (Liu et al. 2024), a
    PEFT model whoever makes it. `attention` names the implementation (train/attention.py knows packed rows)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    on_gpu = hardware.device() == "cuda"
    plain: dict[str, Any] = {"revision": source.hub_revision, "dtype": hardware.dtype(precision)}
    plain["trust_remote_code"] = False
    with translate_errors(f"the model {source.id}"):
        if recipe.engine == "unsloth":
            from unsloth import FastLanguageModel

            plain |= {"max_seq_length": recipe.max_length, "load_in_4bit": recipe.four_bit}
            base, _ = FastLanguageModel.from_pretrained(source.path, **plain)
        else:
            if recipe.four_bit and not on_gpu:
                raise InputError("a 4-bit base needs a GPU; use --method lora16 or dora here")
            if recipe.four_bit:  # NF4 with double quantization (QLoRA, Dettmers et al. 2023)
                nf4: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
                nf4["bnb_4bit_compute_dtype"] = plain["dtype"]
                plain["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
            # where several processes may spread the base among them it waits in the host's memory
            spread = torch.distributed.is_initialized() and recipe.fsdp is not False
            if on_gpu and (recipe.four_bit or not spread):
                plain["device_map"] = {"": torch.cuda.current_device()}
            plain |= {"attn_implementation": attention, "use_safetensors": True}
            base = AutoModelForCausalLM.from_pretrained(source.path, **plain)
    known = [name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in recipe.target_modules:
        if target != "all-linear" and not any(f".{name}".endswith(f".{target}") for name in known):
            named = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in known))
            raise InputError(f"target_modules={target} matches no linear layer of {source.id}; it has {named}")
    adapter: dict[str, Any] = {"r": recipe.r, "lora_alpha": recipe.lora_alpha, "lora_dropout": recipe.lora_dropout}
    adapter["target_modules"] = "all-linear" if "all-linear" in recipe.target_modules else list(recipe.target_modules)
    adapter["use_dora"] = recipe.method == "dora"
    if recipe.engine == "unsloth":
        adapter |= {"bias": "none", "use_gradient_checkpointing": "unsloth", "random_state": recipe.seed}
        return FastLanguageModel.get_peft_model(base, **adapter)
    base.requires_grad_(False)
    torch.manual_seed(recipe.seed)  # the same A for every method
    return get_peft_model(base, LoraConfig(**adapter, task_type="CAUSAL_LM"))
