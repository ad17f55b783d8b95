"""Rows of every known shape, what is dropped or not read and why, files of every kind, benchmark questions."""

import csv
import gzip
import json

import pytest

from iris import InputError
from iris.data import contamination, rows


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def turns(*said):
    """Messages by turns of user and assistant; a first one that begins with "system:" is that."""
    roles = ["system"] * said[0].startswith("system:") + ["user", "assistant"] * 9
    return [{"role": role, "content": text.removeprefix("system:")} for role, text in zip(roles, said, strict=False)]


def sharegpt(**said):
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in said.items()]}


SHAREGPT = sharegpt(human="Hi", gpt=" Hello ")
ALPACA = {"instruction": "Add", "input": "1 and 2", "output": "3"}
ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "sail", "arguments": '{"to": "Oslo"}'}}
PARSED = {"type": "function", "function": {"name": "sail", "arguments": {"to": "Oslo"}}}
TALK, TOLD = turns("Hi", "Hello"), turns("system:x", "Hi", "Hello")
BRIEFED = {"role": "system", "content": "Be kind", "tools": [{"name": "sail"}]}
PARTS = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "messages", "unread"),
    [
        (SHAREGPT, TALK, ""),
        (SHAREGPT | {"system": "Be kind", "tools": '[{"name": "sail"}]'}, [BRIEFED, *TALK], ""),
        (SHAREGPT | {"tools": [{"name": "sail"}]}, [ASK | {"tools": [{"name": "sail"}]}, SAY], ""),
        (SHAREGPT | {"tools": "hammer, nails"}, TALK, "column `tools`"),
        (SHAREGPT | {"tools": "[]", "messages": None}, TALK, ""),
        ({"conversations": None, "messages": TOLD}, TOLD, ""),
        ({"messages": TOLD, "system": "y"}, TOLD, "column `system`"),
        ({"messages": turns("Hi", "Hello", "And?")}, TALK, "what follows the last answer"),
        ({"messages": [ASK | {"content": PARTS}, SAY]}, [ASK, SAY], ""),
        ({"messages": [ASK, SAY | {"content": None, "tool_calls": [CALL]}]},
         [ASK, SAY | {"content": "", "tool_calls": [PARSED]}], ""),
        ({"messages": [ASK, SAY | {"reasoning_content": "Hm"}]}, [ASK, SAY | {"reasoning_content": "Hm"}], ""),
        ({"messages": [ASK, SAY | {"weight": 0}, ASK, SAY | {"weight": 1}]}, [ASK, SAY | {"train": False}, *TALK], ""),
        ({"messages": [ASK, SAY | {"train": False}, *TALK]}, [ASK, SAY | {"train": False}, *TALK], ""),
        (ALPACA, turns("Add\n\n1 and 2", "3"), ""),
        (ALPACA | {"input": NAN, "system": "Brief", "text": "All"}, turns("system:Brief", "Add", "3"), "column `text`"),
        (ALPACA | {"instruction": None}, turns("1 and 2", "3"), ""),
        (ALPACA | {"input": "", "history": [["Hi", "Hello"]]}, turns("Hi", "Hello", "Add", "3"), ""),
        ({"prompt": "Hi", "completion": "Hello"}, TALK, ""),
        ({"prompt": [ASK], "completion": [SAY]}, TALK, ""),
        ({"system_prompt": "x", "question": "Hi", "response": "Hello"}, TOLD, ""),
        ({"question": "Hi", "answer": "Hello", "id": 7}, TALK, "column `id`"),
        ({"instruction": "Who?", "context": "Ann and Bo", "response": "Ann"}, turns("Who?\n\nAnn and Bo", "Ann"), ""),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, TALK, "column `rejected`"),
        ({"prompt": "Hi", "chosen": [ASK, SAY], "rejected": [ASK, SAY]}, TALK, "column `rejected`"),
        ({"chosen": [ASK, SAY], "score": 0.0}, TALK, "column `score`"),
        ({"conversations": [ASK], "chosen": {"from": "gpt", "value": "Hello"}}, TALK, ""),
        ({"prompt": "Hi", "messages": [ASK, SAY], "chosen": [ASK, SAY]}, TALK, "column `prompt`, column `chosen`"),
        ({"messages": [ASK], "chosen": [ASK, SAY]}, TALK, ""),
        ({"messages": [ASK | {"value": "Hi", "ok": 0, "id": None}, SAY]}, TALK, "`content` of a turn, `ok` of a turn"),
        ({"messages": [ASK, SAY], "label": True}, TALK, ""),
        ({"messages": [ASK, SAY, ASK, SAY], "label": False}, [ASK, SAY, ASK, SAY | {"train": False}], ""),
        ({"text": " Once more ", "label": 3}, [{"role": "text", "content": "Once more"}], "column `label`"),
        (sharegpt(human="Hi", function_call="{}", observation="sun", gpt="Sunny"),
         [ASK, SAY | {"content": "{}"}, {"role": "tool", "content": "sun"}, SAY | {"content": "Sunny"}], ""),
    ],
)  # fmt: skip
def test_shapes_become_messages(row, messages, unread):
    assert rows.to_messages(json.loads(json.dumps(row))) == (messages, "", unread.split(", ") if unread else [])


@pytest.mark.parametrize(
    ("reason", "given"),
    [
        ("unknown shape", [{"x": "y"}, {"conversations": []}, {"instruction": None, "output": NAN}]),
        ("unknown speaker 'martian'", [sharegpt(martian="x")]),
        ("empty turn", [sharegpt(human="", gpt="x"), sharegpt(human=None, gpt="x")]),
        ("no answer", [sharegpt(human="x")]),
        ("no answer that is to be learned", [SHAREGPT | {"label": False}, {"messages": [ASK, SAY | {"weight": 0}]}]),
        ("does not begin with a question", [sharegpt(gpt="x"), sharegpt(system="x", gpt="x")]),
        ("system message in the middle", [sharegpt(human="x", system="x", gpt="x")]),
        ("half of a surrogate pair", [ALPACA | {"output": "Smile \ud83d"}]),
        ("something else where text belongs",
         [[], {"conversations": ["x"]}, sharegpt(human=[{"type": "image", "url": "x"}], gpt="x"),
          sharegpt(human={"a": 1}, gpt="x"), ALPACA | {"instruction": ["Name a fish.", "Name a bird."]},
          ALPACA | {"output": 3}, ALPACA | {"history": "Hi"}]),
    ],
)  # fmt: skip
def test_what_cannot_be_used_has_a_reason(reason, given):
    for row in given:
        messages, why, unread = rows.to_messages(row)
        assert messages == unread == [] and why.startswith(reason), row


def test_everything_is_counted_also_of_a_mixture(tmp_path):
    extra = SHAREGPT | {"tools": "[1]"}
    path = write(tmp_path / "a.jsonl.gz", [extra, extra, {"x": 1}, ALPACA, {"text": "Once"}])
    verses, mixed = rows.load("verses"), rows.load(f"{path},verses")
    assert mixed.rows == rows.load(path).rows + verses.rows and mixed.id == f"{path},verses" and mixed.revision is None
    told = json.loads(json.dumps(mixed.as_dict()))
    assert told["dropped"] == {"repeated row": 1, "unknown shape": 1} and told["unread"] == {"column `tools`": 2}
    assert told["read"] == told["rows"] + 2 and told["plain"] == 1
    counts = [(part["id"], part["read"], part["rows"]) for part in told["parts"]]
    assert counts == [(path, 5, 3), ("verses", verses.read, len(verses.rows))]
    assert verses.as_dict()["parts"] == []


def test_a_subset_is_a_seeded_sample():
    one, two, other = (rows.load("verses", rows=10, seed=seed).rows for seed in (1, 1, 2))
    assert one == two != other and len(one) == 10


def test_every_kind_of_file_says_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = [ALPACA | {"output": 'One\u2028two, "three"\nfour'}, ALPACA | {"input": None}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in given)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "array.jsonl").write_text(json.dumps(given, indent=1))
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(given))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "a.parquet")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="") as table:
            writer = csv.DictWriter(table, list(ALPACA), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(given)
    found = {path.name: rows.load(str(path)) for path in tmp_path.iterdir()}
    assert {name: one.rows for name, one in found.items()} == dict.fromkeys(found, found["a.jsonl"].rows)
    assert len(found) == 8 and len(found["a.csv"].rows) == 2 and not found["a.csv"].unread
    (tmp_path / "one.json").write_text(json.dumps(given[0], indent=1))
    whole = rows.load(str(tmp_path))
    assert whole.read == 17 and whole.dropped == {"repeated row": 15} and whole.revision.startswith("sha256:")


def test_bad_files_are_one_sentence(tmp_path):
    (tmp_path / "nothing").mkdir()
    for name, content, words in (
        ("missing.jsonl", None, "there is no file"),
        ("nothing", None, "there is no file"),
        ("empty.jsonl", "", "is empty"),
        ("bad.jsonl", '{"text": "a"}\n{oops\n', "line 2 is not JSON"),
        ("bad.jsonl.gz", "no such thing", "cannot be read"),
        ("bad.parquet", "no such thing", "cannot be read"),
        ("latin.csv", "é", "cannot be read.*utf-8"),
        ("bad.json", '[\n{"a": 1},\n{]', "cannot be read: Expecting.* line 3"),
        ("none.jsonl", '{"a": 1}\n', "no row to train on .1 x unknown shape"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content, encoding="latin1")
        with pytest.raises(InputError, match=words):
            rows.load(str(tmp_path / name))
    with pytest.raises(InputError, match="known: verses, grown, finetome, fusechat, nitral"):
        rows.load("poems")


LONG = "Which of these animals lays its eggs in the warm sand of a beach every second spring?"
GAS = {"question": "Which of these is a noble gas?", "choices": {"text": ["Oxygen", "Helium"], "label": ["A", "B"]}}
MYTH = {"question": "Do lemmings jump?", "mc1_targets": {"choices": ["No, that is a myth", "Yes"], "labels": [1, 0]}}


@pytest.mark.parametrize(
    ("asked", "answer", "is_refused"),
    [
        (f"Answer me: {LONG.upper()}", "A turtle", True),
        ("which of these is a noble gas: A) oxygen B) helium", "B", True),
        ("Now: which of these is a noble gas?", "Helium, of course.", True),
        ("Which of these is a noble gas?", "Argon.", True),  # all that the turn says
        ("Which of these is a noble gas, and which is a metal?", "Argon; iron.", False),
        ("Do lemmings jump?", "Some do.", True),
        ("Tell me, do lemmings jump?", "It's said; no, that is a myth.", True),
        ("Tell me, do lemmings jump far?", "Some do.", False),
        ("She lay on a warm beach and read until the sun went down.", "Nice.", True),  # 8 words of a shorter one
        ("Why so?", "Because.", False),  # too short to be looked for
        ("Which animals lay eggs in the warm sand of a beach?", "Turtles.", False),
    ],
)
def test_benchmark_questions_are_refused(tmp_path, asked, answer, is_refused):
    (tmp_path / "arc").mkdir()
    story = {"ctx": "She lay on a warm beach and read", "endings": ["in the rain.", "a bus."]}
    write(tmp_path / "arc" / "test.jsonl", [{"question": LONG}, GAS, MYTH, story, {"question": "Why so?"}])
    questions = contamination.read_questions(tmp_path)
    given = [ALPACA, {"instruction": asked, "output": answer}]
    found = rows.load(write(tmp_path / "a.jsonl", given), questions=questions)
    assert dict(found.dropped) == ({"contains a benchmark question": 1} if is_refused else {})
    assert found.as_dict()["questions"] == {"looked_for": 4, "too_short": 1}


def test_real_benchmarks_and_chat_rows(data):
    """Every file of the shared chat data loads, and what is dropped has a reason; hardly a question cannot be looked
    for, and of 3,626 rows three hold one ("How does the greenhouse effect work?", "Who are you?")."""
    found = rows.load(str(data / "chat"), questions=contamination.read_questions(data))
    assert found.read == 3626 == len(found.rows) + sum(found.dropped.values())
    assert found.dropped == {"repeated row": 53, "contains a benchmark question": 3}
    assert sum("tools" in row[0] for row in found.rows) == 172
    assert found.questions == {"looked_for": 15811, "too_short": 7}
