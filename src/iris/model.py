"""Base and adapter: names resolved, weights loaded, the adapter put on. The only importer of unsloth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import distributed, embedded, hardware, hub
from .errors import InputError
from .hub import said_plainly
from .recipe import Recipe, one_of
from .record import file_digest, folder_digest

ALIASES = {
    "smollm2": embedded.ID,
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
}


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its public id, the folder or Hub id to load, its revision and the digest of its
    weights (folders only)."""

    id: str
    path: str
    revision: str | None
    digest: str | None

    @property
    def hub_revision(self) -> str | None:
        """The revision to ask the Hub for; None for a folder."""
        return self.revision if self.path == self.id else None

    def as_dict(self) -> dict[str, Any]:
        """id, revision and digest, as a record keeps them."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def resolve(model: str) -> Source:
    """An alias, a folder or a Hub id -> Source. InputError if it is none of these or no Llama-architecture model."""
    if model == "smollm2":
        folder = embedded.folder()
        return Source(embedded.ID, str(folder), embedded.REVISION, folder_digest(folder))
    if Path(model).is_dir():
        return _resolve_folder(Path(model))
    is_path = Path(model).exists() or model.startswith((".", "/", "~"))
    if model in ALIASES or (model.count("/") == 1 and not is_path):
        return _resolve_hub(ALIASES.get(model, model))
    if "/" in model or is_path:
        raise InputError(f"{model} is not a model folder (config.json and safetensors); give one, an alias or a Hub id")
    return Source(one_of(model, list(ALIASES), "model"), model, None, None)


def _resolve_folder(folder: Path) -> Source:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{folder} is not a model: it has no readable config.json") from None
    if config.get("model_type") != "llama":
        raise InputError(
            f"{folder} is of type {config.get('model_type')}; Iris trains models of the Llama architecture"
        )
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no *.safetensors weights; save the model with safe serialization")
    return Source(folder.name, str(folder), None, folder_digest(folder))


def resolve_gguf(file: Path) -> Source:
    """A file of an export (see export.py). InputError if it is not there, or its tokenizer in merged/ is not."""
    if not file.is_file():
        raise InputError(f"there is no {file}; give a GGUF file of `iris export`, a model folder, an alias or a Hub id")
    if not (file.parent / "merged" / "tokenizer.json").exists():
        raise InputError(f"{file} has no merged/ beside it, which has its tokenizer; give a file where it was exported")
    return Source(file.name, str(file), None, file_digest(file))


def _resolve_hub(hub_id: str) -> Source:
    commit = hub.revision(hub_id)
    hub.snapshot(hub_id, commit)  # now, with patience: from_pretrained finds all of it in the cache
    return Source(hub_id, hub_id, commit, None)


def load(source: Source, recipe: Recipe, precision: str) -> Any:
    """The frozen base of `recipe` with a fresh adapter on it, by the recipe's engine; a PEFT model either way."""
    return (
        _load_unsloth(source, recipe, precision)
        if recipe.engine == "unsloth"
        else _load_peft(source, recipe, precision)
    )


def _load_peft(source: Source, recipe: Recipe, precision: str) -> Any:
    """transformers and PEFT: weights in `precision`, or in 4-bit NF4 with double quantization (QLoRA, Dettmers et al.
    2023); LoRA (Hu et al. 2021) or DoRA (Liu et al. 2024) in fp32. Packed rows attend only to themselves."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from . import attention, fast

    on_gpu = hardware.device() == "cuda"
    in_parts = recipe.fsdp and distributed.size() > 1  # then it need not fit into one GPU; in 4 bits it is packed there
    quantization = None
    if recipe.four_bit:
        if not on_gpu:
            raise InputError("a 4-bit base needs a GPU; use --method lora16 or dora here")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=hardware.dtype(precision),
        )
    with said_plainly(f"the model {source.id}"):
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.hub_revision,
            dtype=hardware.dtype(precision),
            quantization_config=quantization,
            device_map={"": torch.cuda.current_device()} if on_gpu and (recipe.four_bit or not in_parts) else None,
            attn_implementation=attention.register(),
            use_safetensors=True,
            trust_remote_code=False,
        )
    model.requires_grad_(False)
    torch.manual_seed(recipe.seed)  # the same A for every method
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(recipe.target_modules),
        use_dora=recipe.use_dora,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    fast.speed_up(adapted)
    return adapted


def prepare(recipe: Recipe) -> None:
    """To be called before transformers and trl are imported: Unsloth patches both, and only what comes after it.
    InputError where it cannot start, as without a GPU."""
    if recipe.engine == "unsloth":
        try:
            import unsloth  # noqa: F401
        except (ImportError, NotImplementedError) as error:
            raise InputError(f"engine=unsloth cannot start here ({error}); leave engine=peft") from None


def _load_unsloth(source: Source, recipe: Recipe, precision: str) -> Any:
    """Unsloth's FastLanguageModel, as in its notebooks."""
    from unsloth import FastLanguageModel

    with said_plainly(f"the model {source.id}"):
        model, _ = FastLanguageModel.from_pretrained(
            source.path,
            revision=source.hub_revision,
            max_seq_length=recipe.max_length,
            dtype=hardware.dtype(precision),
            load_in_4bit=recipe.four_bit,
            trust_remote_code=False,
        )
    return FastLanguageModel.get_peft_model(
        model,
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(recipe.target_modules),
        use_dora=recipe.use_dora,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=recipe.seed,
    )
