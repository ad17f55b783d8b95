"""Rows of every known shape, what is dropped or not read and why, files of every kind, benchmark questions."""

import csv
import gzip
import io
import json

import pytest

from iris import InputError, record
from iris.data import contamination, rows


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def turns(*said):
    """Messages by turns of user and assistant; a first one that begins with "system:" is that."""
    roles = ["system"] * said[0].startswith("system:") + ["user", "assistant"] * 9
    return [{"role": role, "content": text.removeprefix("system:")} for role, text in zip(roles, said, strict=False)]


SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " Hello "}]}
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
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "{}"},
                            {"from": "observation", "value": "sun"}, {"from": "gpt", "value": "Sunny"}]},
         [ASK, SAY | {"content": "{}"}, {"role": "tool", "content": "sun"}, SAY | {"content": "Sunny"}], ""),
    ],
)  # fmt: skip
def test_shapes_become_messages(row, messages, unread):
    assert rows.to_messages(json.loads(json.dumps(row))) == (messages, "", unread.split(", ") if unread else [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "something else where text belongs"),
        ({"x": "y"}, "unknown shape"),
        ({"conversations": []}, "unknown shape"),
        ({"instruction": None, "output": NAN}, "unknown shape"),
        ({"conversations": [{"from": "martian", "value": "x"}]}, "unknown speaker 'martian'"),
        ({"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "x"}]}, "empty turn"),
        ({"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]}, "empty turn"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "no answer"),
        ({"conversations": ["x"]}, "something else where text belongs"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "does not begin with a question"),
        ({"conversations": [{"from": "system", "value": "x"}, {"from": "gpt", "value": "x"}]}, "does not begin"),
        ({"messages": [ASK, {"role": "system", "content": "x"}, SAY]}, "system message in the middle"),
        ({"messages": [ASK, SAY], "label": False}, "no answer that is to be learned"),
        ({"messages": [ASK, SAY | {"weight": 0}]}, "no answer that is to be learned"),
        ({"messages": [ASK | {"content": [{"type": "image", "url": "x"}]}, SAY]}, "something else where text belongs"),
        ({"messages": [ASK | {"content": {"a": 1}}, SAY]}, "something else where text belongs"),
        (ALPACA | {"instruction": ["Name a fish.", "Name a bird."]}, "something else where text belongs"),
        (ALPACA | {"output": 3}, "something else where text belongs"),
        (ALPACA | {"history": "Hi"}, "something else where text belongs"),
        (ALPACA | {"output": "Smile \ud83d"}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_used_has_a_reason(row, reason):
    messages, why, unread = rows.to_messages(row)
    assert messages == unread == [] and why.startswith(reason)


def test_everything_is_counted(tmp_path):
    extra = SHAREGPT | {"tools": "[1]"}
    found = rows.load(write(tmp_path / "a.jsonl.gz", [extra, extra, {"x": 1}, ALPACA, {"text": "Once"}]))
    assert found.read == len(found.rows) + sum(found.dropped.values())
    record.write(record.Record("training", "a", {}, data=found.as_dict()), tmp_path / "record.json")
    told = record.read(tmp_path / "record.json").data
    assert told["dropped"] == {"repeated row": 1, "unknown shape": 1} and told["unread"] == {"column `tools`": 2}
    assert told["plain"] == 1


def test_a_subset_is_a_seeded_sample(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": f"Say {n}", "output": str(n)} for n in range(50)])
    one, two, other = (rows.load(path, rows=10, seed=seed).rows for seed in (1, 1, 2))
    assert one == two != other and len(one) == 10


def test_a_mixture_has_the_rows_of_each_and_its_counts(tmp_path):
    path = write(tmp_path / "a.jsonl", [ALPACA, SHAREGPT, SHAREGPT])
    verses, mixed = rows.load("verses"), rows.load(f"{path},verses")
    assert mixed.rows == rows.load(path).rows + verses.rows and mixed.id == f"{path},verses" and mixed.revision is None
    counts = [(part["id"], part["read"], part["rows"]) for part in mixed.as_dict()["parts"]]
    assert counts == [(path, 3, 2), ("verses", verses.read, len(verses.rows))]
    assert verses.as_dict()["parts"] == [] and not verses.unread


def test_every_kind_of_file_says_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = [ALPACA | {"output": 'One\u2028two, "three"\nfour'}, ALPACA | {"input": None}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in given)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "array.jsonl").write_text(json.dumps(given, indent=1))
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(given))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "one.json").write_text(json.dumps(given[0], indent=1))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "a.parquet")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(ALPACA), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(given)
        (tmp_path / name).write_bytes(table.getvalue().encode())
    assert rows.load(str(tmp_path / "one.json")).rows == rows.load(str(tmp_path / "a.jsonl")).rows[:1]
    (tmp_path / "one.json").unlink()
    found = {path.name: rows.load(str(path)) for path in tmp_path.iterdir()}
    assert {name: one.rows for name, one in found.items()} == dict.fromkeys(found, found["a.jsonl"].rows)
    assert len(found) == 8 and len(found["a.csv"].rows) == 2 and not found["a.csv"].unread
    whole = rows.load(str(tmp_path))
    assert whole.read == 16 and whole.dropped == {"repeated row": 14} and whole.revision.startswith("sha256:")


def test_bad_files_are_one_sentence(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text(json.dumps(ALPACA) + "\n{oops\n")
    for name in ("bad.jsonl.gz", "bad.parquet"):
        (tmp_path / name).write_bytes(b"no such thing")
    (tmp_path / "latin.csv").write_bytes("é".encode("latin1"))
    (tmp_path / "bad.json").write_text('[\n{"a": 1},\n{]')
    (tmp_path / "nothing").mkdir()
    for name, words in {
        "missing.jsonl": "there is no file",
        "nothing": "there is no file",
        "empty.jsonl": "is empty",
        "bad.jsonl": "line 2 is not JSON",
        "bad.jsonl.gz": "cannot be read",
        "bad.parquet": "cannot be read",
        "latin.csv": "cannot be read.*utf-8",
        "bad.json": "cannot be read: Expecting.* line 3",
    }.items():
        with pytest.raises(InputError, match=words):
            rows.load(str(tmp_path / name))
    with pytest.raises(InputError, match="known: verses, grown, finetome, fusechat, nitral"):
        rows.load("poems")
    with pytest.raises(InputError, match="no row to train on .1 x unknown shape"):
        rows.load(write(tmp_path / "none.jsonl", [{"a": 1}]))


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
