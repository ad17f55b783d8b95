"""Messages to ids by any template and tokenizer: what is special, what is learned, what is refused."""

import copy
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iris.data import rows, template
from iris.data.template import Unusable

TALK = [
    {"role": "system", "content": "You are a poet."},
    {"role": "user", "content": "Write a haiku about rain."},
    {"role": "assistant", "content": "Rain on the tin roof"},
    {"role": "user", "content": "Another."},
    {"role": "assistant", "content": "Mud on my new boots"},
]
PROMPT = "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}"
# Every template ends an answer with eos_token, somehow. Each has a habit that a reader of templates has to survive.
TEMPLATES = {
    "turns": "{% for m in messages %}{{ bos_token + m.role + '\n' + m.content + eos_token + '\n' }}{% endfor %}"
    + PROMPT,
    "no generation prompt": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}{% endfor %}",
    "trims": "{{ bos_token }}{% for m in messages %}{{ '## ' + m.role + '\n\n' + m.content | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '## assistant\n\n' }}{% endif %}",
    "words before the end": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '### Response:\n' + m.content"
    " + '\n' + eos_token + '\n' }}{% else %}{{ '### Instruction:\n' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:{% endif %}",
    "words after the end": "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' + eos_token + ' (over)\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    "moves the system message": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}"
    "{% set head = '' %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' +"
    " (head if loop.first else '') + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% endif %}{% endfor %}",
    "moves thoughts": "{% for m in messages %}{{ bos_token + m.role + '\n' }}{% set c = m.content %}{% set r = '' %}"
    "{% set mine = m.role == 'assistant' %}{% if mine and '</think>' in c %}{% set r = c.split('</think>')[0]"
    ".split('<think>')[-1].strip('\n') %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if mine and (loop.last or r) %}{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}"
    "{{ c + eos_token + '\n' }}{% endfor %}" + PROMPT,
    "repeats the first message": "{% for m in messages %}{{ '(' + messages[0].content + ')' + bos_token + m.role"
    " + '\n' + m.content + eos_token }}{% endfor %}{{ messages[0].content }}" + PROMPT,
    "looks into content": "{% for m in messages %}{% if 'rain' in m.content %}[wet]{% endif %}{{ bos_token + m.role"
    " + '\n' + m.content + eos_token }}{% if '!' in m.content %}[loud]{% endif %}{% endfor %}" + PROMPT,
    "writes JSON": "{% for m in messages %}{{ bos_token + m.role + ' ' }}{% if m.role == 'user' %}"
    "{{ {'said': m.content} | tojson }}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}",
    "ends twice": "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "writes today": "{{ bos_token + 'Today is ' + strftime_now('%d %b %Y') + eos_token }}{% for m in messages %}"
    "{{ m.role + ': ' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
}


def sentencepiece(first_only):
    """A small tokenizer of SentencePiece's kind: a space goes before the text, or before each piece of it between
    special tokens (Llama 2's way), and bytes stand for what is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("▁", letter) for letter in "RMnbai"] + [("o", "n"), ("i", "n"), ("▁R", "a"), ("\n", "▁")]
    singles = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    known = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), *singles]
    known += ["".join(pair) for pair in merges]
    bpe = Tokenizer(models.BPE({token: id for id, token in enumerate(known)}, merges, byte_fallback=True))
    if first_only:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


@pytest.fixture(scope="session")
def tokenizers(smollm2_tokenizer):
    own = copy.deepcopy(smollm2_tokenizer)
    return {"byte-level": own, "space before all": sentencepiece(True), "space before each": sentencepiece(False)}


@pytest.fixture(params=["smollm2_tokenizer", "llama_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def whole(tokenizer, messages):
    return tokenizer(template.render(tokenizer, messages), add_special_tokens=False).input_ids


def learned(tokenizer, encoded):
    """The pieces that are learned, as text."""
    return [part.split("\2")[0] for part in template.preview(tokenizer, encoded, ("\1", "\2")).split("\1")[1:]]


PIECES = ["rain", "Blue.", "a", " ", "  ", "\n", "\n\n", "\t", "é", "👩‍🚀", "\u2028", "\u200b", "ﬁ", "אב"]
PIECES += ["\U000f0000", "\\n", '"', "'", "{{ x }}", "{% if %}", "!", "x", "X", "</think>", "<think>", "[/INST]"]
PIECES += ["user:", "### Response:"]
TYPED = ["<|im_end|>", "<|im_start|>", "</s>", "<s>", "<|endoftext|>", "<unk>", "<pad>"]
words = st.lists(st.sampled_from(PIECES + TYPED), min_size=1, max_size=6).map("".join).map(str.strip).filter(bool)
talks = st.tuples(st.none() | words, st.lists(st.tuples(words, words), min_size=1, max_size=3))


@pytest.mark.parametrize("kind", ["byte-level", "space before all", "space before each"])
@pytest.mark.parametrize("habit", TEMPLATES)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(talk=talks)
def test_any_template_with_any_tokenizer_and_text(tokenizers, habit, kind, talk):
    tokenizer = tokenizers[kind]
    tokenizer.chat_template = TEMPLATES[habit]
    messages = [{"role": "system", "content": talk[0]}] if talk[0] else []
    for asked, answer in talk[1]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if habit == "moves thoughts" and any(answer.endswith("</think>") for _, answer in talk[1]):
        return  # nothing of the answer is left by the template: refused, as below
    encoded = template.encode(tokenizer, messages)
    text = template.render(tokenizer, messages)
    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    typed = "\n".join(message["content"] for message in messages)
    if not special.search(typed):
        assert encoded.input_ids == whole(tokenizer, messages)
    own = template.render(tokenizer, json.loads(special.sub("x", json.dumps(messages, ensure_ascii=False))))
    specials = [id for id in encoded.input_ids if id in tokenizer.all_special_ids]
    assert specials == tokenizer.convert_tokens_to_ids(special.findall(own))
    decoded = tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False)
    assert decoded == text if kind == "byte-level" else decoded.replace(" ", "") == text.replace(" ", "")
    ends = [label for label in encoded.labels if label in tokenizer.all_special_ids]
    assert ends == [tokenizer.eos_token_id] * len(talk[1])


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
REFUSED = {
    "ends an answer with no special": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}",
    "refuses it: no system": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + CHATML,
    "leaves out a message of the role system": "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}"
    "{% endif %}" + CHATML,
    "looks into special tokens": "{% if '</s>' in messages[1].content %}Ha{% endif %}" + CHATML,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_row_that_a_template_cannot_write_is_dropped_with_its_reason(tokenizers, reason):
    tokenizer = tokenizers["space before each" if "special tokens" in reason else "byte-level"]
    tokenizer.chat_template = REFUSED[reason]
    talk = [TALK[0], {"role": "user", "content": "</s>"}, TALK[2]]
    encoded, why = template.encode_within(tokenizer, talk, 512)
    assert encoded is None and reason in why


def test_the_stand_in_of_a_special_token_cannot_be_typed(smollm2_tokenizer):
    for number in range(17):
        typed = "<|im_end|>" + chr(0x100000 + number) * len("<|im_end|>")
        talk = [{"role": "user", "content": typed}, {"role": "assistant", "content": "b"}]
        encoded, _ = template.encode_within(smollm2_tokenizer, talk, 99)
        assert encoded is None or encoded.input_ids.count(smollm2_tokenizer.eos_token_id) == 3  # of the three turns


def test_every_answer_and_its_end_of_turn_is_learned_and_nothing_else(tokenizer):
    encoded, end = template.encode(tokenizer, TALK), tokenizer.eos_token
    assert learned(tokenizer, encoded) == [f"Rain on the tin roof{end}", f"Mud on my new boots{end}"]
    second_only = template.encode(tokenizer, [message | {"train": message is not TALK[2]} for message in TALK])
    assert learned(tokenizer, second_only) == [f"Mud on my new boots{end}"]
    assert second_only.input_ids == encoded.input_ids
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    if tokenizer.bos_token == "<|begin_of_text|>":
        assert encoded.input_ids.count(tokenizer.bos_token_id) == 1 and encoded.input_ids[0] == tokenizer.bos_token_id
    else:  # ChatML: <|im_start|> opens every turn, once
        assert encoded.input_ids.count(tokenizer.bos_token_id) == len(TALK)


def test_words_that_the_template_writes_before_the_end_are_learned_and_its_date_is_pinned(tokenizers):
    tokenizer = tokenizers["byte-level"]
    tokenizer.chat_template = TEMPLATES["words before the end"]
    assert learned(tokenizer, template.encode(tokenizer, TALK[1:3])) == ["\nRain on the tin roof\n<|im_end|>"]
    tokenizer.chat_template = TEMPLATES["moves thoughts"]
    thought = "<think>\nTwo and two make four.\n</think>\n\n4"
    talk = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": thought}]
    assert learned(tokenizer, template.encode(tokenizer, talk)) == [thought + "<|im_end|>"]
    tokenizer.chat_template = TEMPLATES["writes today"]
    assert "Today is 26 Jul 2024" in template.render(tokenizer, TALK)


def test_tool_calls_are_learned_where_the_template_writes_them(llama_tokenizer, smollm2_tokenizer):
    tool = {"name": "weather", "description": "Tells the weather.", "parameters": {"city": "string"}}
    called = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    talk = [
        {"role": "user", "content": "Weather?", "tools": [tool]},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": 'a "quoted" \\ line\nand é'},
        {"role": "assistant", "content": "Sunny.", "reasoning_content": "It says so."},
    ]
    encoded = template.encode(llama_tokenizer, talk)
    assert encoded.input_ids == whole(llama_tokenizer, talk) and encoded.unread == ("`reasoning_content` of a turn",)
    call = '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
    assert learned(llama_tokenizer, encoded) == [call, "Sunny.<|eot_id|>"]
    assert "Tells the weather." in template.render(llama_tokenizer, talk)
    with pytest.raises(Unusable, match="leaves out a message of the role assistant"):
        template.encode(smollm2_tokenizer, talk)
    told = template.encode(smollm2_tokenizer, [talk[0], talk[3]]).unread
    assert told == ("column `tools`", "`reasoning_content` of a turn")


@pytest.mark.parametrize("name", ["glaive_toolcall_en", "preference_chosen_en"])
def test_real_rows_encode_as_their_rendering(tokenizer, data, name):
    """Every answer of each row is learned, and no other text; tools are read or told."""
    takes = "<|begin_of_text|>" in tokenizer.get_vocab()
    for talk in rows.load(str(data / "chat" / f"{name}.jsonl.gz")).rows[:40]:
        encoded = template.encode(tokenizer, talk)
        assert encoded.input_ids == whole(tokenizer, talk)
        assert encoded.unread == (("column `tools`",) if "tools" in talk[0] and not takes else ())
        answers = [turn["content"] + tokenizer.eos_token for turn in talk if turn["role"] == "assistant"]
        assert [piece.strip() for piece in learned(tokenizer, encoded)] == answers


def test_plain_text_is_learned_whole(tokenizer):
    encoded, how = template.encode_within(tokenizer, [{"role": template.PLAIN, "content": "Once <|im_end|> more"}], 99)
    assert encoded.labels == encoded.input_ids and encoded.input_ids.count(tokenizer.eos_token_id) == 1 and how == ""
    how = template.encode_within(tokenizer, [{"role": template.PLAIN, "content": "Once more"}], 2)[1]
    assert how == "text cut to max_length"


def test_a_long_talk_is_cut_after_a_whole_answer(tokenizer):
    encoded = template.encode(tokenizer, TALK)
    kept = set()
    for length in range(1, len(encoded.input_ids) + 2):
        short, reason = template.encode_within(tokenizer, TALK, length)
        if short is None:
            assert reason == "answer beyond max_length"
            continue
        assert len(short.input_ids) <= length
        assert short.labels[-1] == tokenizer.eos_token_id or short == encoded
        assert bool(reason) == (len(encoded.input_ids) > length)
        kept.add(len(learned(tokenizer, short)))
    assert kept == {1, 2}


def test_the_golden_rendering(llama_tokenizer, data):
    """The text that Unsloth's notebook printed for row 5 of FineTome with the Llama-3.1 template."""
    lines = (data / "chat" / "finetome_rows.jsonl").read_text().splitlines()
    row = next(json.loads(line) for line in lines if '"rendered_llama31"' in line)
    messages, reason, _ = rows.to_messages(row)
    assert reason == ""
    golden = row["rendered_llama31"].replace("Today Date: 26 July 2024", "Today Date: 26 Jul 2024")
    assert template.render(llama_tokenizer, messages) == golden
