"""The command line: exit codes, one sentence for each mistake, and an answer within a second."""

import subprocess
import sys
import time

import pytest

from iris.cli import main

VERBS = "demo train evaluate compare sweep speed export publish poem judge report doctor".split()


def test_help_is_quick_and_complete():
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "iris", "--help"], capture_output=True, text=True)
    assert time.monotonic() - begun < 1.0
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0 and "usage: iris" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "VERB"),
        ("sing", "invalid choice"),
        ("train --out {tmp}/x --method lora", "known: qlora, dora, lora16"),
        ("train --out {tmp}/x --data rhymes", "known: verses, finetome, fusechat, nitral"),
        ("train --out {tmp}/x --data {tmp}/none.jsonl", "no file"),
        ("train --out {tmp}/x --data {tmp}/empty.jsonl", "is empty"),
        ("train --out {tmp}/x --data {tmp}/bad.jsonl", "line 1 is not JSON"),
        ("train --out {tmp}/x --model {tmp}", "not a model"),
        ("train --out {tmp}/x --model {tmp}/none", "not a model folder"),
        ("train --out {tmp}/x --model smolm2", "smollm2"),
        ("train --out {tmp}/empty.jsonl/x", "cannot be written to"),
        ("train --out {tmp}/x --max-steps many", "max-steps"),
        ("train --out {tmp}/x --minutes 0", "above zero"),
        ("train --out {tmp}/x --set lr=1", "unknown recipe field"),
        ("train", "--out"),
        ("evaluate --out {tmp}/x.json --tasks poems", "poetry"),
        ("compare {tmp}/a.json {tmp}/b.json", "no record at"),
        ("export --run {tmp} --out {tmp}/y", "no record at"),
        ("publish --export {tmp} --repo me", "USER/NAME"),
        ("publish --export {tmp} --repo me/poet", "no SHA256SUMS"),
        ("publish --repo me/poet", "--export"),
        ("poem rain --form epic", "haiku"),
        ("poem rain --model {tmp}/none.gguf", "no model file"),
        ("poem rain --model {tmp}/empty.jsonl", "not a GGUF"),
        ("judge {tmp}/none.txt", "no file"),
        ("judge {tmp}/bad.jsonl", "not JSON"),
        ("judge {tmp}/rows.jsonl", "neither `lines`"),
        ("judge {tmp}/rows.jsonl --form epic", "haiku"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_two(words, told, tmp_path, capsys):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text("oops\n")
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n')
    code = main(words.format(tmp=tmp_path).split())
    said = capsys.readouterr().err
    assert code == 2 and told in said, said
    assert said.startswith("iris: ") and said.count("\n") == 1


def test_judge_prints_one_object_a_poem(tmp_path, capsys):
    import json

    path = tmp_path / "poems.jsonl"
    haiku = "Her torch held downward,\nshe counts the breaths in bed nine,\nthen counts them again."
    path.write_text(json.dumps({"text": haiku}) + "\n" + json.dumps({"lines": ["one", "two"], "form": "haiku"}) + "\n")
    assert main(["judge", str(path), "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["form"] == "haiku" and first["keeps"] is True and first["score"] == 1 and first["reasons"] == []
    assert second["keeps"] is False and second["reasons"]


def test_doctor_says_what_is_there(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "python 3." in said and "train: ready" in said


def test_an_unforeseen_error_is_one_line_without_debug(monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("by zero\nmore")

    monkeypatch.setattr("iris.doctor.examine", broken)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "iris: ZeroDivisionError: by zero (run again with --debug for the trace)\n"
    with pytest.raises(ZeroDivisionError):
        main(["doctor", "--debug"])
