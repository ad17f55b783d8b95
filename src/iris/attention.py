"""Attention of packed rows: each row attends causally to itself alone, whatever lies beside it in the sequence.

Registered with transformers as the attention implementation "iris_packed". The bounds of the rows come as the model
argument `cu_seqlens` (rows + 1 entries; repeats are rows of no length), as in FlashAttention's varlen interface. A GPU
with FlashAttention (Ampere or later, 16-bit) takes all rows in one kernel through torch.nn.attention.varlen; elsewhere
the rows are attended to one by one, which is as exact and, on a CPU, cheaper than a masked square over all of them.
Without `cu_seqlens` it is transformers' ordinary SDPA, so that generation works on the same model.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from . import hardware

NAME = "iris_packed"


def register() -> str:
    """Make the implementation known to transformers; returns its name."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN makes a new plan for every new length: 5 ms of CPU a call
    AttentionInterface.register(NAME, flash_attention if hardware.is_ampere() else row_by_row_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def flash_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, T, head_dim), key and value (1, kv_heads, T, head_dim), 16-bit -> (1, T, heads, head_dim).
    `max_seqlen` is the longest row's length or more."""
    if cu_seqlens is None or query.dtype == torch.float32:
        return row_by_row_attention(module, query, key, value, attention_mask, scaling, cu_seqlens, **kwargs)
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    out: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scaling, **_CAUSAL)
    return out[None], None


@torch.compiler.disable
def row_by_row_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The same function and shapes where FlashAttention is missing (CPU, T4, fp32)."""
    if cu_seqlens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:  # without FlashAttention, grouped heads would take the kernel that holds T x T scores
        key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
        grouped = False
    rows = [
        scaled_dot_product_attention(
            query[:, :, begin:end],
            key[:, :, begin:end],
            value[:, :, begin:end],
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        for begin, end in pairwise(cu_seqlens.tolist())
        if end > begin
    ]
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _causal_arguments() -> dict[str, Any]:
    """How this release of torch spells causal grouped-query attention (2.11: is_causal; 2.13: window_size)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {}
    names = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    return causal | ({"enable_gqa": True} if "enable_gqa" in names else {})


_CAUSAL = _causal_arguments()
