"""Records: what is written is read again, and what was tampered with is not."""

import gzip
import json
import math
import sys
from types import SimpleNamespace

import pytest

from iris import InputError, record


def make(**changes):
    return record.Record(**{"kind": "evaluation", "name": "x", "model": {"id": "m", "digest": "d"}} | changes)


def test_round_trip(tmp_path):
    one = make(tasks={"arc": {"metric": "acc", "value": 0.5, "stderr": 0.01, "n": 10}}, note="né")
    record.write(one, tmp_path / "a.json")
    assert record.read(tmp_path / "a.json") == one
    assert not list(tmp_path.glob("*.partial"))
    assert one.environment["packages"]["huggingface_hub"] and one.environment["python"]
    git = one.environment["git"]
    assert git is None or set(git) == {"commit", "clean"}


def test_what_is_missing_edited_or_no_record(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match="no record at"):
        record.read(path)
    record.write(make(measures={"loss": 1.0}), path)
    edited = path.read_text().replace("1.0", "0.5")
    other = json.dumps(json.loads(edited) | {"schema": 99})
    unknown = dict.fromkeys(["", "[]", "{}", "not json", '{"digest": "x"}'], "not an Iris record")
    for content, told in ({edited: "changed after it was written", other: "schema 99"} | unknown).items():
        path.write_text(content)
        with pytest.raises(InputError, match=told):
            record.read(path)


def test_items_lie_beside_the_record_whatever_its_name(tmp_path):
    for name, value in (("a.json", 0.5), ("m-v1.0.json", 0.0), ("m-v2.0.json", 0.25)):
        record.write_items(tmp_path / name, {"arc": {"id": [0, 1], "value": [value, 0.0]}})
    assert record.read_items(tmp_path / "a.json") == {"arc": {"id": [0, 1], "value": [0.5, 0.0]}}
    assert record.read_items(tmp_path / "m-v1.0.json")["arc"]["value"] == [0.0, 0.0]
    assert (tmp_path / "a.items.json.gz").exists()
    with pytest.raises(InputError, match="missing or damaged"):
        record.read_items(tmp_path / "c.json")


def test_what_is_no_number_is_neither_written_nor_read(tmp_path):
    path = tmp_path / "a.json"
    record.write(make(measures={"losses": [1.0, math.nan], "loss": math.inf}), path)
    assert record.read(path).measures == {"losses": [1.0, None], "loss": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write_items(path, {"arc": {"id": [0], "value": [math.nan]}})
    path.write_text(path.read_text().replace("null", "NaN"))
    with pytest.raises(InputError, match="not an Iris record"):
        record.read(path)
    record.items_path(path).write_bytes(gzip.compress(b'{"arc": {"id": [0], "value": [NaN]}}'))
    with pytest.raises(InputError, match="missing or damaged"):
        record.read_items(path)


def test_only_finished_full_records_are_loaded(tmp_path, capsys):
    record.write(make(status="finished"), tmp_path / "full.json")
    record.write(make(status="finished", settings={"limit": 5}), tmp_path / "part.json")
    record.write(make(status="failed"), tmp_path / "failed.json")
    record.write(make(kind="speed", status="stopped"), tmp_path / "rows.json")
    assert [path.stem for path in record.load(tmp_path)] == ["full", "rows"]
    told = capsys.readouterr().out
    assert "part.json: limited to 5 items" in told and "failed.json: the run failed" in told


def test_peak_memory_without_proc_and_on_windows(monkeypatch):
    assert record.peak_memory_gb() > 0.001
    monkeypatch.setattr(record.Path, "exists", lambda _: False)
    assert record.peak_memory_gb() > 0.001
    told = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=250_000_000))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: told))
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has none
    monkeypatch.setattr(sys, "platform", "win32")
    assert record.peak_memory_gb() == 0.25
