"""The chat template: one BOS, a fixed date, EOS is not pad, and which tokens are learned.

The template's own words (role headers, end-of-turn marks) are read as special tokens; what a person wrote never is.
To keep the two apart each message is first replaced by a private-use character, the conversation is rendered by the
tokenizer's template, and the rendering is tokenized piece by piece. Only the assistant's words and the end-of-turn
token after them are learned, in every turn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import hub
from .errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

# Llama-3.2's template writes today's date into the system turn unless told otherwise; this is its own default.
TEMPLATE_DATE = "26 Jul 2024"
IGNORED = -100  # the label of a token that is not learned, as in torch's cross-entropy
_MARK = 0xF0000  # first of the private-use characters that stand for the messages


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids; labels are the same ids where learned and -100 elsewhere (not yet shifted)."""

    input_ids: list[int]
    labels: list[int]


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a Hub id at a commit, with a pad token that is not its end-of-turn token and a
    chat template; InputError else."""
    from transformers import AutoTokenizer

    folder = hub.snapshot(path, revision) if revision else path
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise InputError(f"{path} has no chat template; choose an instruction-tuned model")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = tokenizer.get_vocab()
        names = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>", "<unk>")
        free = [name for name in names if name in known and known[name] != tokenizer.eos_token_id]
        if not free:
            raise InputError(f"{path} has no token free for padding besides its end-of-turn token")
        tokenizer.pad_token = free[0]
    return tokenizer


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool = False) -> str:
    """The conversation as text, by the tokenizer's own template with the date pinned."""
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=TEMPLATE_DATE
        )
    )


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool = False) -> Encoded:
    """Token ids and labels of a conversation."""
    marked = [message | {"content": chr(_MARK + index)} for index, message in enumerate(messages)]
    text = render(tokenizer, marked, add_generation_prompt)
    ids: list[int] = []
    labels: list[int] = []
    answered = False  # whether the piece before was an assistant's message: its end-of-turn token is learned too

    def add(piece: str, learned: bool, special: bool) -> None:
        nonlocal answered
        tokens = tokenizer(piece, add_special_tokens=False, split_special_tokens=not special).input_ids
        ids.extend(tokens)
        labels.extend(tokens if learned else [IGNORED] * len(tokens))
        if answered and special and tokens:
            labels[-len(tokens)] = tokens[0]
            answered = False

    start = 0
    for index, message in enumerate(messages):
        place = text.index(chr(_MARK + index), start)
        content, end = message["content"], place + 1
        if text[place - 1] == text[end] == '"':  # a template that writes a tool's answer as a JSON string
            content, place, end = json.dumps(content, ensure_ascii=False), place - 1, end + 1
        add(text[start:place], learned=False, special=True)
        add(content, learned=message["role"] == "assistant", special=False)
        answered = message["role"] == "assistant"
        start = end
    add(text[start:], learned=False, special=True)
    return Encoded(ids, labels)


def fit(encoded: Encoded, max_length: int) -> tuple[Encoded | None, str]:
    """The conversation within `max_length` tokens, and "", "cut" or why it is dropped. A long conversation is cut
    after the last whole answer that fits, so that no half answer is learned."""
    if len(encoded.input_ids) <= max_length:
        return encoded, ""
    end = max_length
    if encoded.labels[end] != IGNORED:  # the cut would fall into an answer: go back to where it begins
        while end and encoded.labels[end - 1] != IGNORED:
            end -= 1
    while end and encoded.labels[end - 1] == IGNORED:
        end -= 1
    if end == 0:
        return None, "answer beyond max_length"
    return Encoded(encoded.input_ids[:end], encoded.labels[:end]), "cut to the answers that fit max_length"


def preview(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, learned: tuple[str, str] = ("[", "]")) -> str:
    """The conversation decoded again, with what is learned between the two marks."""
    parts: list[str] = []
    begin = 0
    for index in range(1, len(encoded.labels) + 1):
        if index == len(encoded.labels) or (encoded.labels[index] == IGNORED) != (encoded.labels[begin] == IGNORED):
            text = str(tokenizer.decode(encoded.input_ids[begin:index], clean_up_tokenization_spaces=False))
            parts.append(text if encoded.labels[begin] == IGNORED else f"{learned[0]}{text}{learned[1]}")
            begin = index
    return "".join(parts)


def pack(rows: list[Encoded], max_length: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: lists of row indices whose lengths sum to at most `max_length`.

    Each bin becomes one packed sequence; rows stay whole. Follows trl's "bfd" strategy (Ding et al. 2024,
    "Fewer Truncations Improve Language Modeling").
    """
    from bisect import bisect_left, insort

    free: list[tuple[int, int]] = []  # (space left, bin), sorted
    bins: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i)):
        length = len(rows[index].input_ids)
        place = bisect_left(free, (length, -1))
        if place == len(free):
            bins.append([])
            space, chosen = max_length, len(bins) - 1
        else:
            space, chosen = free.pop(place)
        bins[chosen].append(index)
        if space > length:
            insort(free, (space - length, chosen))
    return bins


def packed_item(rows: list[Encoded]) -> dict[str, list[int]]:
    """One packed sequence for the trainer: ids, labels shifted by one within each row, and the rows' lengths."""
    labels = [label for row in rows for label in [*row.labels[1:], IGNORED]]
    return {
        "input_ids": [token for row in rows for token in row.input_ids],
        "labels": labels,
        "seq_lengths": [len(row.input_ids) for row in rows],
    }


def nothing(pad_token_id: int) -> dict[str, list[int]]:
    """A packed sequence of which nothing is learned and that counts as no tokens: a row of one token is padding."""
    return {"input_ids": [pad_token_id], "labels": [IGNORED], "seq_lengths": [1]}


class Shape(NamedTuple):
    """Fixed shapes of a batch, which torch.compile needs: tokens in all, the longest row, and how many rows at most."""

    tokens: int
    longest: int
    rows: int


def shape_of(items: list[dict[str, Any]], micro_batch: int, max_length: int) -> Shape:
    """The shape that any `micro_batch` of these packed sequences fits into, its padding included."""
    most = sorted((len(item["seq_lengths"]) for item in items), reverse=True)[:micro_batch]
    return Shape(micro_batch * max_length, max_length, sum(most) + micro_batch)


def collate(items: list[dict[str, Any]], pad_token_id: int, shape: Shape | None = None) -> dict[str, Any]:
    """Packed sequences -> one flat row of tensors: input_ids, labels (shifted: the label of a token is the next token)
    and position_ids, each (1, T); cu_seqlens (rows + 1); tokens, how many are not padding.

    With `shape` T is shape.tokens, padding forms rows of its own, and cu_seqlens is filled with rows of no length."""
    import torch

    ids = [token for item in items for token in item["input_ids"]]
    labels = [label for item in items for label in item["labels"]]
    lengths = [n for item in items for n in item["seq_lengths"]]
    tokens = sum(n for n in lengths if n > 1)
    if shape is not None:
        gap = shape.tokens - tokens
        ids += [pad_token_id] * gap
        labels += [IGNORED] * gap
        lengths += [min(shape.longest, gap - begin) for begin in range(0, gap, shape.longest)]
    positions = torch.cat([torch.arange(n) for n in lengths])
    if shape is not None:
        lengths += [0] * (shape.rows - len(lengths))
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": positions[None],
        "cu_seqlens": torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        "tokens": tokens,
    }


def collate_padded(items: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """The same rows one below the other, padded on the right: input_ids, labels (shifted) and attention_mask, each
    (rows, longest), and tokens. For engines that do not know packed rows."""
    import torch

    rows = []
    for item in items:
        begin = 0
        for n in item["seq_lengths"]:
            rows.append((item["input_ids"][begin : begin + n], item["labels"][begin : begin + n]))
            begin += n
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "tokens": sum(len(ids) for ids, _ in rows),
    }
