"""Records: what is written is read again, and what was tampered with is not."""

import json

import pytest

from iris import record
from iris.errors import InputError


def make(**changes):
    given = {"kind": "evaluation", "name": "x", "model": {"id": "m", "revision": None, "digest": "d"}} | changes
    return record.Record(**given)


def test_round_trip(tmp_path):
    one = make(tasks={"arc": {"metric": "acc", "value": 0.5, "stderr": 0.01, "n": 10}}, note="né")
    record.write(one, tmp_path / "a.json")
    assert record.read(tmp_path / "a.json") == one
    assert not list(tmp_path.glob("*.partial"))


def test_environment_says_versions_and_commit():
    found = record.environment()
    assert found["packages"]["huggingface_hub"] and found["python"]
    assert found["git"] is None or set(found["git"]) == {"commit", "clean"}


def test_an_edited_record_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    record.write(make(measures={"loss": 1.0}), path)
    path.write_text(path.read_text().replace("1.0", "0.5"))
    with pytest.raises(InputError, match="changed after it was written"):
        record.read(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", '{"digest": "x"}'])
def test_what_is_no_record(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="not an Iris record"):
        record.read(tmp_path / "a.json")


def test_missing_and_other_schema(tmp_path):
    with pytest.raises(InputError, match="no record at"):
        record.read(tmp_path / "a.json")
    record.write(make(), tmp_path / "a.json")
    body = json.loads((tmp_path / "a.json").read_text()) | {"schema": 99}
    (tmp_path / "a.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match="schema 99"):
        record.read(tmp_path / "a.json")


def test_items_lie_beside_the_record(tmp_path):
    items = {"arc": {"id": [0, 1], "value": [1.0, 0.0]}}
    record.write_items(tmp_path / "a.json", items)
    assert (tmp_path / "a.items.json.gz").exists()
    assert record.read_items(tmp_path / "a.json") == items
    with pytest.raises(InputError, match="missing or damaged"):
        record.read_items(tmp_path / "b.json")


def test_unknown_kind():
    with pytest.raises(ValueError, match="party"):
        make(kind="party")
