"""Rows of every known shape, what is dropped and why, and files that cannot be read."""

import gzip
import json

import pytest

from iris import data
from iris.errors import InputError


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " Hello "}]}
MESSAGES = {"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"},
                         {"role": "assistant", "content": "Hello"}]}  # fmt: skip
ALPACA = {"instruction": "Add", "input": "1 and 2", "output": "3"}
TOOLS = {"conversations": [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": "{}"},
                           {"from": "observation", "value": "sun"}, {"from": "gpt", "value": "Sunny"}]}  # fmt: skip


def test_shapes_become_messages(tmp_path):
    found = data.load(write(tmp_path / "a.jsonl", [SHAREGPT, MESSAGES, ALPACA, TOOLS]))
    roles = [[message["role"] for message in row] for row in found.rows]
    assert roles == [
        ["user", "assistant"],
        ["system", "user", "assistant"],
        ["user", "assistant"],
        ["user", "assistant", "tool", "assistant"],
    ]
    assert found.rows[0][1]["content"] == "Hello"
    assert found.rows[2][0]["content"] == "Add\n\n1 and 2"
    assert found.read == 4 and not found.dropped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "not an object"),
        ({"text": "x"}, "unknown shape"),
        ({"conversations": [{"from": "martian", "value": "x"}]}, "unknown speaker 'martian'"),
        ({"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "x"}]}, "empty turn"),
        ({"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]}, "empty turn"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "no answer"),
        ({"conversations": []}, "no answer"),
        ({"conversations": ["x"]}, "a turn is not an object"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "does not begin with a question"),
        ({"conversations": [{"from": "system", "value": "x"}, {"from": "gpt", "value": "x"}]}, "does not begin"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "system", "value": "x"},
                            {"from": "gpt", "value": "x"}]}, "system message in the middle"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_has_a_reason(row, reason):
    messages, why = data.to_messages(row)
    assert messages == [] and why.startswith(reason)


def test_dropped_rows_are_counted_and_nothing_else_is(tmp_path):
    found = data.load(write(tmp_path / "a.jsonl.gz", [SHAREGPT, SHAREGPT, {"x": 1}, ALPACA]))
    assert dict(found.dropped) == {"repeated row": 1, "unknown shape": 1}
    assert found.read == len(found.rows) + sum(found.dropped.values())


def test_a_subset_is_a_seeded_sample(tmp_path):
    rows = [{"instruction": f"Say {n}", "output": str(n)} for n in range(50)]
    path = write(tmp_path / "a.jsonl", rows)
    one, two, other = (data.load(path, rows=10, seed=seed).rows for seed in (1, 1, 2))
    assert one == two != other and len(one) == 10


def test_json_and_parquet(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ALPACA, SHAREGPT]))
    assert len(data.load(str(tmp_path / "a.json")).rows) == 2
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([ALPACA]), tmp_path / "a.parquet")
    assert len(data.load(str(tmp_path / "a.parquet")).rows) == 1


def test_bad_files_are_one_sentence(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text(json.dumps(ALPACA) + "\n{oops\n")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "bad.json").write_text("{")
    for name, words in {
        "missing.jsonl": "no file",
        "empty.jsonl": "is empty",
        "bad.jsonl": "line 2 is not JSON",
        "bad.jsonl.gz": "cannot be read",
        "bad.parquet": "not a readable Parquet",
        "bad.json": "is not JSON",
    }.items():
        with pytest.raises(InputError, match=words):
            data.load(str(tmp_path / name))
    with pytest.raises(InputError, match="known: verses, finetome, fusechat, nitral"):
        data.load("poems")
    with pytest.raises(InputError, match="no row to train on .1 x unknown shape"):
        data.load(write(tmp_path / "none.jsonl", [{"a": 1}]))


def test_benchmark_questions_are_refused(tmp_path):
    question = "Which of these animals lays its eggs in the warm sand of a beach every second spring?"
    (tmp_path / "arc").mkdir()
    write(tmp_path / "arc" / "test.jsonl", [{"question": question}])
    rows = [ALPACA, {"instruction": f"Answer me: {question.upper()}", "output": "A turtle"}]
    found = data.load(write(tmp_path / "a.jsonl", rows), benchmarks=data.benchmark_ngrams(tmp_path))
    assert dict(found.dropped) == {"contains a benchmark question": 1} and len(found.rows) == 1


def test_real_chat_rows(shared_data):
    """Every file of the shared chat data loads; what is dropped has a reason."""
    for path in sorted((shared_data / "chat").iterdir()):
        found = data.load(str(path))
        assert found.read == len(found.rows) + sum(found.dropped.values())
        assert len(found.rows) > 0.8 * found.read, (path.name, found.dropped)
