"""CPU speed by model size: the files have the shapes they are named for, and every row is measured."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import pytest

from iris import inference, record, speed
from iris.errors import InputError


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> str:
    numbers = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8}
    monkeypatch.setitem(speed.SHAPES, "tiny", numbers | {"head_dim": 32, "tie_word_embeddings": False})
    return "tiny"


def test_every_file_is_measured(llama_tokenizer, tiny_shape: str, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    inference.infer_speed([tiny_shape], Path(llama_tokenizer.name_or_path), out)
    result = record.read(out)
    assert [(row["shape"], row["quant"]) for row in result.measures["rows"]] == [("tiny", "q4_0"), ("tiny", "q8_0")]
    for row in result.measures["rows"]:
        assert row["prompt_tokens_per_s"] > row["generation_tokens_per_s"] > 0
        assert row["peak_memory_gb"] > row["file_gb"] > 0.03 and row["load_seconds"] > 0
        share = row["generation_tokens_per_s"] * row["file_gb"] / result.measures["bandwidth_gb_per_s"]
        assert math.isclose(row["bandwidth_ratio"], share, rel_tol=0.02)
    assert list(tmp_path.iterdir()) == [out]  # the models are gone


@pytest.mark.parametrize("shape", ["1b", "8b"])
def test_shapes_are_the_familys(shape: str) -> None:
    """Numbers of parameters as on the model cards: 1.24 and 8.03 billion."""
    config = speed.shape_config(shape)
    wide, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    attention = 2 * wide * dim * (config.num_attention_heads + config.num_key_value_heads)
    layers = config.num_hidden_layers * (attention + 3 * wide * inner + 2 * wide)
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * wide
    assert round((layers + embeddings + wide) / 1e9, 2) == {"1b": 1.24, "8b": 8.03}[shape]


def test_a_random_file_has_its_shape(llama_tokenizer, tiny_shape: str, tmp_path: Path) -> None:
    path = inference.write_random(tiny_shape, "q8_0", Path(llama_tokenizer.name_or_path), tmp_path)
    reader = gguf.GGUFReader(path)
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (256, 128256)
    assert shapes["blk.1.attn_k.weight"] == (256, 256) and shapes["blk.1.ffn_down.weight"] == (512, 256)
    assert len(shapes) == 2 * 9 + 4
    assert reader.fields["tokenizer.ggml.pre"].contents() == "llama-bpe"


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tokenizer.json; give a folder with a Llama-3 tokenizer"):
        inference.infer_speed(["1b"], tmp_path, tmp_path / "speed.json")
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(InputError, match="unknown shape '2b'.*known: 1b, 3b, 8b"):
        inference.infer_speed(["2b"], tmp_path, tmp_path / "speed.json")
