"""A GGUF model's tokenizer and the logits of every position, which xllamacpp's Python class does not offer.

xllamacpp exports all of libllama, which is called with ctypes. The struct layouts are those of llama.h (2026-10); only
their first fields are named, for the engine fills in the rest, and `Model` proves on loading that it reads them right.
"""

from __future__ import annotations

import ctypes as c
from pathlib import Path

import numpy as np
import xllamacpp

from iris import RunError

I32, PTR = c.c_int32, c.c_void_p
LIB = c.CDLL(xllamacpp.xllamacpp.__file__)


class _ModelParams(c.Structure):
    _fields_ = (("all", c.c_uint8 * 512),)  # more than it has: passed by value, the callee reads what it knows


class _ContextParams(c.Structure):
    _fields_ = (
        *((name, c.c_uint32) for name in "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max per_seq".split()),
        *((name, I32) for name in ("n_threads", "n_threads_batch")),
        ("rest", c.c_uint8 * 512),
    )


class _Batch(c.Structure):
    _fields_ = (
        *(("n_tokens", I32), ("token", c.POINTER(I32)), ("embd", PTR), ("pos", c.POINTER(I32))),
        *(("n_seq_id", c.POINTER(I32)), ("seq_id", c.POINTER(c.POINTER(I32))), ("logits", c.POINTER(c.c_int8))),
    )


for name, result, arguments in (
    ("model_default_params", _ModelParams, ()),
    ("context_default_params", _ContextParams, ()),
    ("model_load_from_file", PTR, (c.c_char_p, _ModelParams)),
    ("init_from_model", PTR, (PTR, _ContextParams)),
    ("model_get_vocab", PTR, (PTR,)),
    ("vocab_n_tokens", I32, (PTR,)),
    ("tokenize", I32, (PTR, c.c_char_p, I32, c.POINTER(I32), I32, c.c_bool, c.c_bool)),
    ("n_ctx", c.c_uint32, (PTR,)),
    ("get_memory", PTR, (PTR,)),
    ("memory_clear", None, (PTR, c.c_bool)),
    ("decode", I32, (PTR, _Batch)),
    ("get_logits", c.POINTER(c.c_float), (PTR,)),
    ("free", None, (PTR,)),
    ("model_free", None, (PTR,)),
):
    function = getattr(LIB, f"llama_{name}")
    function.restype, function.argtypes = result, arguments


class Model:
    """A model with one sequence of at most `n_ctx` tokens; for one thread at a time. `threads`: of the prompt."""

    def __init__(self, path: str | Path, n_ctx: int = 512, threads: int = 2) -> None:
        self._model = LIB.llama_model_load_from_file(str(path).encode(), LIB.llama_model_default_params())
        if not self._model:
            raise RunError(f"{path} could not be loaded: it is damaged or not a model for text; export it again")
        self._vocab = LIB.llama_model_get_vocab(self._model)
        self.n_vocab = LIB.llama_vocab_n_tokens(self._vocab)
        params = LIB.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = threads
        self._context = LIB.llama_init_from_model(self._model, params)
        if not self._context or not n_ctx <= LIB.llama_n_ctx(self._context) < n_ctx + 256:
            raise RunError("this xllamacpp has another llama.h than Iris knows; install the version in pyproject.toml")

    def close(self) -> None:
        """Free the model."""
        LIB.llama_free(self._context)
        LIB.llama_model_free(self._model)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids; `add_special` puts the BOS where the GGUF says so, `parse_special` reads <|...|> as tokens."""
        data = text.encode()
        ids = (I32 * (len(data) + 8))()
        count = LIB.llama_tokenize(self._vocab, data, len(data), ids, len(ids), add_special, parse_special)
        return list(ids[:count])

    def logits(self, ids: list[int]) -> np.ndarray:
        """The logits after each of `ids` (at most n_ctx), fp32 [len(ids), n_vocab]."""
        n, sequence = len(ids), c.pointer(I32(0))
        tokens, places = (I32 * n)(*ids), (I32 * n)(*range(n))
        sequences = (I32 * n)(*[1] * n), (c.POINTER(I32) * n)(*[sequence] * n)
        batch = _Batch(n, tokens, None, places, *sequences, (c.c_int8 * n)(*[1] * n))
        LIB.llama_memory_clear(LIB.llama_get_memory(self._context), True)
        if LIB.llama_decode(self._context, batch):
            raise RunError(f"the engine could not read {n} tokens")
        return np.ctypeslib.as_array(LIB.llama_get_logits(self._context), (n, self.n_vocab)).copy()
