"""llama.cpp's C functions, out of the engine's own library: what its Python class does not offer.

xllamacpp exports all of libllama and ggml. Three things are taken from there with ctypes: the quantizer, the tokenizer
and the logits of every position. The struct layouts are those of llama.h (2026-10); only their first fields are named,
for the engine fills in the rest, and `Model` proves on loading that it reads them right.
"""

from __future__ import annotations

import ctypes as c
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RunError


class _ModelParams(c.Structure):
    _fields_ = (("all", c.c_uint8 * 512),)  # more than it has: passed by value, the callee reads what it knows


class _ContextParams(c.Structure):
    _fields_ = (
        *((name, c.c_uint32) for name in "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max".split()),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("rest", c.c_uint8 * 512),
    )


class _Batch(c.Structure):
    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_silent = _LOG(lambda level, text, data: None)


@cache
def library() -> Any:
    """The engine's shared library with the types of the functions used here."""
    import xllamacpp

    lib = c.CDLL(xllamacpp.xllamacpp.__file__)
    p, i32, i64, u32 = c.c_void_p, c.c_int32, c.c_int64, c.c_uint32
    for name, result, arguments in (
        ("ggml_quantize_chunk", c.c_size_t, (c.c_int, p, p, i64, i64, i64, p)),
        ("llama_model_default_params", _ModelParams, ()),
        ("llama_context_default_params", _ContextParams, ()),
        ("llama_model_load_from_file", p, (c.c_char_p, _ModelParams)),
        ("llama_init_from_model", p, (p, _ContextParams)),
        ("llama_model_get_vocab", p, (p,)),
        ("llama_vocab_n_tokens", i32, (p,)),
        ("llama_vocab_is_eog", c.c_bool, (p, i32)),
        ("llama_tokenize", i32, (p, c.c_char_p, i32, c.POINTER(i32), i32, c.c_bool, c.c_bool)),
        ("llama_n_ctx", u32, (p,)),
        ("llama_get_memory", p, (p,)),
        ("llama_memory_clear", None, (p, c.c_bool)),
        ("llama_decode", i32, (p, _Batch)),
        ("llama_get_logits", c.POINTER(c.c_float), (p,)),
        ("llama_free", None, (p,)),
        ("llama_model_free", None, (p,)),
        ("llama_log_set", None, (_LOG, p)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Model:
    """A GGUF model with one sequence of at most `n_ctx` tokens. Not for use from several threads. `threads`: of both
    the prompt and the generation. RunError if it cannot be loaded."""

    def __init__(self, path: str | Path, n_ctx: int = 512, threads: int = 2) -> None:
        self._lib = lib = library()
        lib.llama_log_set(_silent, None)
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self._model:
            raise RunError(f"{path} could not be loaded: it is damaged or not a model for text; export it again")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab = lib.llama_vocab_n_tokens(self._vocab)
        self.n_ctx = n_ctx
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context or not n_ctx <= lib.llama_n_ctx(self._context) < n_ctx + 256:
            raise RunError("this xllamacpp has another llama.h than Iris knows; install the version in pyproject.toml")

    def close(self) -> None:
        """Free the model."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids; `add_special` puts the BOS where the GGUF says so, `parse_special` reads <|...|> as tokens."""
        data = text.encode()
        ids = (c.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), add_special, parse_special)
        return list(ids[:count])

    def is_end(self, token: int) -> bool:
        """Whether generation ends at this token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def logits(self, ids: list[int]) -> np.ndarray:
        """The logits after each of `ids` (at most n_ctx), fp32 [len(ids), n_vocab]."""
        n = len(ids)
        sequence = (c.c_int32 * 1)(0)
        batch = _Batch(
            n_tokens=n,
            token=(c.c_int32 * n)(*ids),
            pos=(c.c_int32 * n)(*range(n)),
            n_seq_id=(c.c_int32 * n)(*[1] * n),
            seq_id=(c.POINTER(c.c_int32) * n)(*[c.cast(sequence, c.POINTER(c.c_int32))] * n),
            logits=(c.c_int8 * n)(*[1] * n),
        )
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        if self._lib.llama_decode(self._context, batch):
            raise RunError(f"the engine could not read {n} tokens; it has room for {self.n_ctx}")
        values = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(values, (n, self.n_vocab)).copy()
