"""Attention of packed rows: each row attends causally to itself alone, whatever lies beside it in the sequence.

Known to transformers as the attention "iris_packed". The bounds of the rows come as the model's argument `cu_seqlens`
(rows + 1 entries; repeats are rows of no length), as in FlashAttention's varlen interface. A GPU with FlashAttention
(Ampere or later, 16-bit) takes all rows in one kernel through torch.nn.attention.varlen; elsewhere they are attended to
one by one, which is as exact and, on a CPU, cheaper than a masked square over all of them. Without `cu_seqlens` it is
transformers' ordinary SDPA, so that generation works on the same model.
"""

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..model import hardware

NAME = "iris_packed"
_KNOWN = inspect.signature(varlen_attn).parameters  # torch 2.11 says is_causal, 2.13 window_size
CAUSAL: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _KNOWN else {"is_causal": True}
if "enable_gqa" in _KNOWN:
    CAUSAL["enable_gqa"] = True


def register() -> str:
    """Make the implementation known to transformers; returns its name."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN makes a new plan for every new length: 5 ms of CPU a call
    AttentionInterface.register(NAME, flash_attention if hardware.is_ampere() else row_by_row_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def flash_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    """query (1, heads, T, head_dim), key and value (1, kv_heads, T, head_dim), 16-bit -> (1, T, heads, head_dim).
    `given` has cu_seqlens, max_seqlen (the longest row's length or more) and scaling."""
    bounds, longest = given.get("cu_seqlens"), given.get("max_seqlen", 0)
    if bounds is None or query.dtype == torch.float32:
        return row_by_row_attention(module, query, key, value, mask, **given)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=given.get("scaling"), **CAUSAL)
    return out[None], None


@torch.compiler.disable
def row_by_row_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    """The same function and shapes where FlashAttention is missing (CPU, T4, fp32)."""
    bounds, _ = given.pop("cu_seqlens", None), given.pop("max_seqlen", 0)
    if bounds is None:
        return sdpa_attention_forward(module, query, key, value, mask, **given)
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:  # without FlashAttention, grouped heads would take the kernel that holds T x T scores
        key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
        grouped = False
    rows = []
    for begin, end in pairwise(bounds.tolist()):
        if end > begin:
            q, k, v = (tensor[:, :, begin:end] for tensor in (query, key, value))
            scale = given.get("scaling")
            rows.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped))
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None
