"""The chat template: one way from messages to token ids, and which of them are learned.

The ids are those of the template's own rendering of the messages, tokenized whole. Where a message stands in that text
is found by comparing renderings: with one more letter at its end (or its beginning) the text differs just there. An
answer is learned from the end of the template's generation prompt, or from its own first word where there is no such
prompt, up to and with the first special token after it. What a person wrote is never read as a special token.
"""

import copy
import json
import re
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .. import InputError, hub

Message = dict[str, Any]

# Templates that write today's date are told this one, which is the default of Llama-3.2's own.
TEMPLATE_DATE = "26 Jul 2024"
PINNED: dict[str, Any] = {
    "date_string": TEMPLATE_DATE,
    "strftime_now": datetime.strptime(TEMPLATE_DATE, "%d %b %Y").strftime,
}
PLAIN = "text"  # the role of a lone message that is no talk but plain text, learned whole
IGNORED = -100  # the label of a token that is not learned, as in torch's cross-entropy
_STAND_IN = 0x100000  # first of the characters, all private, that stand for special tokens


class Unusable(ValueError):
    """Why a row cannot be learned: it is no conversation, or this model's template cannot write it."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids; labels are the same ids where learned and -100 elsewhere (not yet shifted).
    `unread` names what stands in the row and not in the template's rendering."""

    input_ids: list[int]
    labels: list[int]
    unread: tuple[str, ...] = ()


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a Hub id at a commit, with a pad token that is not its end-of-turn token and a
    chat template; InputError else."""
    folder = hub.snapshot(path, revision) if revision else path
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise InputError(f"{path} has no chat template; choose an instruction-tuned model")
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {path} tells no offsets; choose a model with a fast tokenizer")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = tokenizer.get_vocab()
        names = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>", "<unk>")
        free = [name for name in names if name in known and known[name] != tokenizer.eos_token_id]
        if not free:
            raise InputError(f"{path} has no token free for padding besides its end-of-turn token")
        tokenizer.pad_token = free[0]
    return tokenizer


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool = False) -> str:
    """The conversation as text, by the tokenizer's own template with the date pinned; `tools` of a message are given
    to it as the conversation's. Raises what the template does."""
    turns = [{key: value for key, value in turn.items() if key not in ("train", "tools")} for turn in messages]
    options = {"tools": next((turn["tools"] for turn in messages if "tools" in turn), None), **PINNED}
    prompt = add_generation_prompt
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **options))


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool = False) -> Encoded:
    """Token ids and labels of a conversation, or the ids of a prompt. Unusable if the template raises, leaves a
    message out, mixes the words of two, or writes no special token after an answer."""
    if messages[0]["role"] == PLAIN:
        ids = tokenizer(messages[0]["content"], split_special_tokens=True, verbose=False).input_ids
        ids += [tokenizer.eos_token_id] if tokenizer.eos_token_id not in (None, *ids[-1:]) else []
        return Encoded(ids, list(ids))

    def rendered(given: list[Message], prompt: bool = add_generation_prompt) -> str:
        try:
            return render(tokenizer, given, prompt)
        except Exception as error:  # a template is somebody else's program: it may raise anything
            raise Unusable(f"the chat template refuses it: {error}"[:120]) from None

    text = rendered(messages)
    ids, ends, special = _tokenize(tokenizer, messages, text, rendered)
    labels = [IGNORED] * len(ids)
    if add_generation_prompt:
        return Encoded(ids, labels)
    places = [_locate(rendered, messages, index, text) for index in range(len(messages))]
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("train", True):
            continue
        begin, end, _ = places[index]
        with suppress(Unusable):  # a template may refuse what no answer follows
            prompt = rendered(messages[:index], True)
            if text.startswith(prompt) and len(prompt) <= end and prompt != rendered(messages[:index]):
                begin = len(prompt)
        last = next((place for place in special if ends[place] > end), None)
        edges = [edge for other in (*places[:index], *places[index + 1 :]) for edge in other[:2]]
        if last is None or begin >= end or any(begin < edge < ends[last] for edge in edges):
            raise Unusable("the chat template ends an answer with no special token of its own")
        first = bisect_right(ends, begin)
        labels[first : last + 1] = ids[first : last + 1]
    unread = [f"`{name}` of a turn" for *_, fields in places for name in fields if name != "tools"]
    return Encoded(ids, labels, tuple(["column `tools`"] * ("tools" in places[0][2]) + unread))


def _locate(
    rendered: Callable[[list[Message]], str], messages: list[Message], index: int, text: str
) -> tuple[int, int, list[str]]:
    """Where in `text`, the rendering of `messages`, one of them stands (begin, end), and its fields that do not."""
    message = messages[index]
    content = message["content"]

    def differs(**fields: Any) -> tuple[int, int] | None:
        """From where to where the text would be another if these fields were (None: were not there)."""
        changed = {key: value for key, value in (message | fields).items() if value is not None}
        other = rendered([*messages[:index], changed, *messages[index + 1 :]])
        lengths = range(1, min(len(text), len(other)) + 1)
        before = bisect_right(lengths, False, key=lambda n: text[:n] != other[:n])
        behind = bisect_right(lengths, False, key=lambda n: text[-n:] != other[-n:])
        return None if other == text else (before, len(text) - behind)

    fields = {name: differs(**{name: None}) for name in message.keys() - {"role", "content", "train"}}
    places = [place for place in fields.values() if place]
    # the letter more must not be the one beside it, else the text would seem to differ one letter further on
    if content and (place := differs(content=content + "xy"[content[-1] in "xX"])):
        end = place[1]
        if whole := next((words for words in (content, content.strip()) if text.endswith(words, 0, end)), None):
            places.append((end - len(whole), end))
        else:
            place = differs(content="xy"[content[0] in "xX"] + content)
            places.append((place[0] if place else end, end))
    if not places:
        raise Unusable(f"the chat template leaves out a message of the role {message['role']}")
    return min(places)[0], max(end for _, end in places), [name for name, place in fields.items() if not place]


@lru_cache(maxsize=4)
def _stand_ins(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], dict[str, str], dict[int, int], Any]:
    """What finds the names of special tokens; for each name a stand-in of its length; a copy of the tokenizer to which
    only these are special, and the names text; and the special tokens' ids by those of the stand-ins in the copy."""
    plain = copy.deepcopy(tokenizer.backend_tokenizer)
    plain.encode_special_tokens = True  # as text, that is
    plain.no_truncation()
    plain.no_padding()
    stand_ins: dict[str, str] = {}
    ids = {}
    for id, token in tokenizer.added_tokens_decoder.items():
        if token.special or token.content in tokenizer.all_special_tokens:
            stand_in = stand_ins[token.content] = chr(_STAND_IN + len(stand_ins)) * len(token.content)
            how = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            plain.add_tokens([type(token)(stand_in, **how)])
            ids[plain.token_to_id(stand_in)] = id
    names = re.compile("|".join(map(re.escape, sorted(stand_ins, key=len, reverse=True))))
    return names, stand_ins, ids, plain


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], text: str, rendered: Callable[[list[Message]], str]
) -> tuple[list[int], list[int], list[int]]:
    """Ids of `text`, the rendering of `messages`; up to which character each reaches; the places of the special ones.

    A special token is what the template wrote. Where its name was typed in a message, the messages are rendered again
    with its stand-in, which shows what of the text was typed."""
    names, stand_ins, ids, plain = _stand_ins(tokenizer)
    said = json.dumps(messages, ensure_ascii=False)

    def stand_in(name: re.Match[str]) -> str:
        return stand_ins[name[0]]

    typed = rendered(json.loads(names.sub(stand_in, said))) if names.search(said) else text
    if names.sub(stand_in, typed) != names.sub(stand_in, text) or max(text, default="") >= chr(_STAND_IN):
        raise Unusable("the chat template looks into special tokens that were typed")
    marked = names.sub(lambda name: stand_ins[name[0]] if typed.startswith(name[0], name.start()) else name[0], text)
    whole = plain.encode(marked, add_special_tokens=False)
    special = [place for place, id in enumerate(whole.ids) if id in ids]
    return [ids.get(id, id) for id in whole.ids], [end for _, end in whole.offsets], special


def encode_within(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_length: int
) -> tuple[Encoded | None, str]:
    """The conversation within `max_length` tokens and "", or how it was cut; None and why it is dropped. A long one is
    cut after the last whole answer that fits, so that no half answer is learned; plain text anywhere."""
    try:
        encoded = encode(tokenizer, messages)
    except Unusable as error:
        return None, str(error)
    ids, labels = encoded.input_ids, encoded.labels
    if len(ids) <= max_length:
        return encoded, ""
    if messages[0]["role"] == PLAIN:
        return Encoded(ids[:max_length], labels[:max_length]), "text cut to max_length"
    answered = (k + 1 for k in reversed(range(max_length)) if labels[k] != IGNORED and labels[k + 1] == IGNORED)
    if end := next(answered, 0):
        return Encoded(ids[:end], labels[:end], encoded.unread), "cut to the answers that fit max_length"
    return None, "answer beyond max_length"


def preview(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, learned: tuple[str, str] = ("[", "]")) -> str:
    """The conversation decoded again, with what is learned between the two marks."""
    shown, before, end = "", "", 0
    for is_learned, run in groupby(label != IGNORED for label in encoded.labels):
        end += len(list(run))
        text = str(tokenizer.decode(encoded.input_ids[:end], clean_up_tokenization_spaces=False))
        piece, before = text[len(before) :], text
        shown += f"{learned[0]}{piece}{learned[1]}" if is_learned else piece
    return shown
