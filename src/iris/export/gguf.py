"""Write a Llama-architecture folder as a GGUF file: names, order of rows, vocabulary, quantization; or its adapter.

The official `gguf` library knows the names, the metadata and the file; the engine that recites (xllamacpp) holds ggml,
whose `ggml_quantize_chunk` packs the blocks (llama_model_quantize it does not hold). What is left for us is what
llama.cpp's convert_hf_to_gguf.py does for this one architecture, and which tensor `llama-quantize` gives which type.
tests/test_export.py holds both against the official converter. One tensor is in memory at a time.
"""

import ctypes
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType
from gguf.lazy import LazyNumpyTensor
from gguf.quants import dequantize, quant_shape_to_byte_shape
from safetensors import safe_open
from transformers import LlamaConfig

from .. import InputError
from ..model.load import pre_tokenizer
from .merge import WEIGHTS, read_adapter, read_json

logging.getLogger("gguf").setLevel(logging.ERROR)

# The words a user gives: those of llama.cpp's file types; without the _M they are the types of most tensors.
QUANTS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
# Rows that are no multiple of a K-quant's 256 take the next larger type with blocks of 32 (llama-quantize).
NARROW = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


def write(folder: Path, path: Path, quant: str, name: str, plans: bool = False) -> None:
    """Write the Hugging Face folder of a Llama model (16-bit safetensors) to `path` as `quant`; `name` becomes
    general.name; `plans`: it was taught to land on end words that a request names, which the poet reads in the file.
    Keys and tensors stand in the converter's order, which makes the files equal byte for byte."""
    config: Any = LlamaConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, arch="llama")
    for tensor, (kind, values) in plan(folder, quant).items():
        writer.add_tensor(tensor, values, raw_dtype=kind)
    parameters = writer.get_total_parameter_count()[0]
    general = gguf.Metadata.load(None, folder, name, parameters)
    general.size_label = general.size_label or gguf.size_label(parameters, parameters, 0, 0)

    writer.add_type(gguf.GGUFType.MODEL)
    general.set_gguf_meta_model(writer)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(FileType[f"MOSTLY_{quant.upper()}"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_vocabulary(writer, folder, config.vocab_size)
    if plans:
        writer.add_bool("iris.plans", True)
    finish(writer)


def write_adapter(folder: Path, path: Path, base: Path, plans: bool) -> None:
    """Write the PEFT adapter in `folder` to `path`, matrices in F16: a voice of 10 MB beside the GGUF of its base,
    which llama.cpp adds while it runs (`--lora`). base: the base's Hugging Face folder. InputError for anything but a
    plain LoRA. Source: convert_lora_to_gguf.py of llama.cpp."""
    config: Any = LlamaConfig.from_pretrained(base)
    lora, adapter = read_adapter(folder)
    if lora.get("use_dora"):
        raise InputError(f"{folder} is a DoRA adapter, which llama.cpp cannot add to a base; export it merged")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora["lora_alpha"])
    writer.add_bool("iris.plans", plans)
    for module, part in adapter.items():
        a, b = part["lora_A"].numpy(), in_rope_pairs(module, part["lora_B"].numpy(), config)
        writer.add_tensor(f"{names.get_name(module)}.weight.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{names.get_name(module)}.weight.lora_b", b.astype(np.float16))
    finish(writer)


def write_voice(base: Path, adapter: Path, path: Path) -> None:
    """Write the GGUF model `base` with a GGUF `adapter` added to its weights (fp32, W + alpha / rank * B A) to `path`,
    matrices as Q8_0, with the adapter's `iris.plans`: for a browser, whose engine reads no Q4_1 fast."""
    model, voice = gguf.GGUFReader(base), gguf.GGUFReader(adapter)
    learned = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in voice.tensors}
    alpha = voice.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    writer = gguf.GGUFWriter(path, arch="llama")
    for name, field in model.fields.items():
        if not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE:
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(FileType.MOSTLY_Q8_0)
    writer.add_bool("iris.plans", voice.fields["iris.plans"].contents())
    for tensor in model.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if (down := learned.get(f"{tensor.name}.lora_a")) is not None:
            values = values + learned[f"{tensor.name}.lora_b"] @ down * (alpha / len(down))
        stored = Type.Q8_0 if values.ndim == 2 else Type.F32
        writer.add_tensor(tensor.name, pack(values.astype(np.float32), stored), raw_dtype=stored)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def plan(folder: Path, quant: str) -> dict[str, tuple[Type, Any]]:
    """The tensors of the file by name, in its order: their types, and their bytes, which are read and packed when they
    are written. InputError if the model is no Llama in 16 bits."""
    config: Any = LlamaConfig.from_pretrained(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    shapes: dict[tuple[Path, str], tuple[int, ...]] = {}
    for file in sorted(folder.glob(WEIGHTS)):
        with safe_open(file, "pt") as weights:
            shapes |= {(file, name): tuple(weights.get_slice(name).get_shape()) for name in weights.offset_keys()}
    tied = all(name != "lm_head.weight" for _, name in shapes)

    def read(file: Path, name: str, kind: Type) -> np.ndarray:
        with safe_open(file, "pt", backend="pread") as weights:
            values = weights.get_tensor(name).float().numpy()
        return pack(in_rope_pairs(name.rpartition(".")[0], values, config), kind)

    tensors: dict[str, tuple[Type, Any]] = {}
    if (factors := rope_factors(config)) is not None:
        tensors["rope_freqs.weight"] = Type.F32, LazyNumpyTensor.from_eager(factors)
    for (file, name), shape in shapes.items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None or getattr(config, "quantization_config", None):
            raise InputError(f"{folder} holds {name}, which no Llama in 16 bits has; export a plain Llama model")
        kind = choose(new, shape, quant, config.num_hidden_layers, tied)
        packed = {Type.F32: (np.float32, shape), Type.F16: (np.float16, shape)}
        like = packed.get(kind) or (np.uint8, quant_shape_to_byte_shape(shape, kind))
        meta = LazyNumpyTensor.meta_with_dtype_and_shape(*like)
        tensors[new] = kind, LazyNumpyTensor(meta=meta, func=partial(read, file, name, kind))
    return tensors


def in_rope_pairs(module: str, values: np.ndarray, config: Any) -> np.ndarray:
    """The rows [out, ...] of a q or k projection, reordered from Hugging Face's halves to llama.cpp's pairs, the two
    ways to lay out what rope rotates together; any other module's as they are."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if (heads := counts.get(module.rpartition(".")[2])) is None:
        return values
    pairs = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def choose(name: str, shape: tuple[int, ...], quant: str, layers: int, tied: bool) -> Type:
    """The type of one tensor, as llama-quantize chooses it (llama_tensor_get_type, without an importance matrix)."""
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return Type.F32
    chosen = Type[quant.removesuffix("_m").upper()]
    if quant not in ("f16", "bf16", "q8_0"):
        part = name.split(".")
        layer, eighth = int(part[1]) if part[0] == "blk" else 0, layers // 8
        more_bits = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        mixed = quant.endswith("_k_m") and name.endswith(("attn_v.weight", "ffn_down.weight")) and more_bits
        if mixed or name == "output.weight" or (tied and name == "token_embd.weight"):
            chosen = Type.Q6_K
    if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = NARROW.get(chosen, Type.F16)
    return chosen if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] == 0 else Type.F16


def rope_factors(config: Any) -> np.ndarray | None:
    """What Llama 3.1 and later divide rope's frequencies by, fp32 [head_dim / 2]; None for plain rope. Source:
    conversion/llama.py of llama.cpp; the arithmetic is fp32 like there."""
    rope, dim = config.rope_parameters, config.head_dim
    if rope["rope_type"] == "default":
        return None
    steps = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1) / np.float32(rope["rope_theta"]) ** steps
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context, wavelengths = rope["original_max_position_embeddings"], np.float32(2 * math.pi) / frequencies
    smooth = (np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    short, long = wavelengths < context / high, wavelengths > context / low
    return np.select([short, long], [np.float32(1), np.float32(factor)], between)


def write_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Keys tokenizer.*: `size` tokens, merges, special tokens, chat template. Ids that the tokenizer lacks become
    unused."""
    data = read_json(folder / "tokenizer.json")
    added = {token["id"]: token for token in data.get("added_tokens", [])}
    by_id = {index: token for token, index in data["model"]["vocab"].items()}
    by_id |= {index: token["content"] for index, token in added.items()}
    kinds = [gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED for index in range(size)]
    for index, token in added.items():
        special = token["special"] or (token["content"].startswith("<|") and token["content"].endswith("|>"))
        kinds[index] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(pre_tokenizer(data)))
    writer.add_token_list([by_id.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(kinds)
    special_tokens = gguf.SpecialVocab(folder, load_merges=True)
    processor = data.get("post_processor") or {}
    if any(each.get("type") == "ByteLevel" for each in processor.get("processors", [processor])):
        # the converter says so aloud, and first; gguf 0.19.0 on the index does not yet
        special_tokens.add_special_token = {"bos": False, "eos": False} | special_tokens.add_special_token
    special_tokens.add_to_gguf(writer, quiet=True)
    if size == 49152:  # the converter's rule, made for Granite: it also says that SmolLM2 begins without a BOS
        writer.add_add_bos_token(False)


def pack(values: np.ndarray, kind: Type) -> np.ndarray:
    """`values` (fp32 [..., n]) as the bytes of ggml type `kind`; quantized in parallel over rows."""
    if kind in (Type.F32, Type.F16, Type.BF16):
        return gguf.quants.quantize(values, kind)
    import xllamacpp

    quantize_chunk = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, i64, i64, i64, pointer)
    packed = np.empty(quant_shape_to_byte_shape(values.shape, kind), np.uint8)
    columns = values.shape[-1]
    rows, at_once = values.size // columns, 512

    def quantize(row: int) -> None:
        count = min(at_once, rows - row)
        quantize_chunk(kind, values.ctypes.data, packed.ctypes.data, row * columns, count, columns, None)

    with ThreadPoolExecutor() as pool:
        list(pool.map(quantize, range(0, rows, at_once)))
    return packed
