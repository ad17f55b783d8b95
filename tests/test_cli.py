"""The command line: exit codes, one sentence for each mistake, and an answer within a second."""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest

from iris import cli, recipe
from iris.cli import main

HOME = Path(__file__).parents[1]

VERBS = "train evaluate compare sweep export publish poem judge report doctor".split()


def test_help_is_quick_and_complete(capsys):
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "iris", "--help"], capture_output=True, text=True)
    assert time.monotonic() - begun < 1.0  # 0.2 s on a quiet machine
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)
    for verb in VERBS:
        with pytest.raises(SystemExit, match="^0$"):
            main([verb, "--help"])
        assert f"usage: iris {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "VERB"), ("sing", "invalid choice"), ("train --out {tmp}/x --method lora", "known: qlora, dora, lora16"),
        ("train --out {tmp}/x --data rhymes", "known: verses, grown, finetome, fusechat, nitral"),
        ("train --out {tmp}/x --data {tmp}/none.jsonl", "no file"),
        ("train --out {tmp}/x --data {tmp}/empty.jsonl", "is empty"),
        ("train --out {tmp}/x --data {tmp}/bad.jsonl", "cannot be read: Expecting value: line 1"),
        ("train --out {tmp}/x --model {tmp}", "not a model"),
        ("train --out {tmp}/x --model {tmp}/none", "not a model folder"),
        ("train --out {tmp}/x --model smolm2", "smollm2"), ("train --out {tmp}/empty.jsonl/x", "cannot be written to"),
        ("train --out {tmp}/x --max-steps many", "max_steps"),
        ("train --out {tmp}/x --data-dir {tmp}", "unrecognized arguments: --data-dir"),
        ("train --out {tmp}/x --minutes 0", "above zero"), ("train --out {tmp}/x --set lr=1", "unknown recipe field"),
        ("train", "--out"), ("evaluate --out {tmp}/x.json --tasks poems", "poetry"),
        ("compare {tmp}/a.json {tmp}/b.json", "no record at"), ("export --run {tmp} --out {tmp}/y", "no record at"),
        ("publish --export {tmp} --repo me", "USER/NAME"), ("publish --export {tmp} --repo me/poet", "no SHA256SUMS"),
        ("publish --repo me/poet", "--export"), ("poem rain --form epic", "haiku"),
        ("poem rain --model {tmp}/none.gguf", "no model file"), ("poem rain --model {tmp}/empty.jsonl", "not a GGUF"),
        ("judge {tmp}/none.txt", "no file"), ("judge {tmp}/bad.jsonl", "not JSON"),
        ("judge {tmp}/rows.jsonl", "neither `lines`"), ("judge {tmp}/rows.jsonl --form epic", "haiku"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_exit_code_two(words, told, tmp_path, capsys):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text("oops\n")
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n')
    code = main(words.format(tmp=tmp_path).split())
    said = capsys.readouterr().err
    assert code == 2 and told in said, said
    assert said.startswith("iris: ") and said.count("\n") == 1


def test_every_field_is_a_flag_and_set_is_its_alias(monkeypatch):
    texts, made = {"int": "3", "float": "0.5", "bool": "true", "str": "a/x", "tuple[str,": "a, b"}, []

    def train(*, out, minutes, resume, strict, benchmarks, settings, **given):
        made.append(recipe.make(settings, **given))

    monkeypatch.setattr("iris.cli.train", train)
    for item in fields(recipe.Recipe):
        text = next(iter(item.metadata["choices"]), texts[str(item.type).partition(" ")[0]])
        for words in ([f"--{item.name.replace('_', '-')}", text], ["--set", f"{item.name}={text}"]):
            assert main(["train", "--out", "x", *words]) == 0
            assert made.pop() == recipe.make([f"{item.name}={text}"]) and item.metadata["help"]


def test_the_same_seed_gives_the_same_poem(capsys):
    asked = ["poem", "rain", "--form", "couplet", "--seed", "7", "--model", "smollm2", "--as-it-comes"]
    assert main(asked) == main(asked) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines and lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_doctor_says_what_is_there_and_what_memory_a_training_takes(capsys, tmp_path):
    """Without a network, and beside it what was measured."""
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "python 3." in said and "train: ready" in said
    for words, fits in (
        ("llama-3.2-1b --method qlora --gpu T4", "it fits"),
        ("llama-3.2-3b --method dora --gpu T4", "it fits"),
        ("llama-3.1-8b --method lora16 --gpu T4", "it does not fit"),
        ("llama-3.1-8b --method qlora --gpu 24gb", "it fits"),
    ):
        assert main(["doctor", "--model", *words.split()]) == 0
        head, verdict, *measured = capsys.readouterr().out.splitlines()
        assert head.startswith(f"{words[:12]} ({words[10]}") and verdict.startswith(fits)
        told = [re.match(r"measured on .*: [\d.]+ GB with \d x 2,048 tokens", line) for line in measured]
        assert told and all(told)
    for words, told in ((["llama-3.2-1b", "--gpu", "voodoo"], "unknown GPU"), ([str(tmp_path)], "no readable config")):
        assert main(["doctor", "--model", *words]) == 2 and told in capsys.readouterr().err


def test_an_unforeseen_error_is_one_line_without_debug(monkeypatch, capsys):
    monkeypatch.setattr("iris.cli.doctor", Mock(side_effect=ZeroDivisionError("by zero\nmore")))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "iris: ZeroDivisionError: by zero (run again with --debug for the trace)\n"
    with pytest.raises(ZeroDivisionError):
        main(["doctor", "--debug"])


def test_the_line_for_a_rented_machine_is_one_that_hf_and_iris_understand(tmp_path):
    """docs/scale.md's `hf jobs uv run ...`, read by the pinned huggingface_hub's own command line, then by ours."""
    (line,) = re.findall(r"^(hf jobs uv run .*?)\n```", (HOME / "docs/scale.md").read_text(), re.MULTILINE | re.DOTALL)
    _, *words = shlex.split(line.replace("\\\n", " "))
    words[words.index("run") + 1 : 3] = ["--dry-run", "--format", "human"]
    (tmp_path / "poems").mkdir()
    hf, environment = Path(sys.executable).with_name("hf"), os.environ | {"HF_TOKEN": "hf_x", "COLUMNS": "200"}
    done = subprocess.run([hf, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job = dict(re.findall(r"^  (\w+) +(.*)$", done.stdout, re.MULTILINE))
    assert job["script"] == "iris" and job["secrets"] == "HF_TOKEN=***" and "hf_x" not in done.stdout
    args = cli.parser().parse_args(shlex.split(job["args"]))
    assert job["volumes"] == f"./poems:{Path(args.data).parent}" and f":{args.out.parent}" in done.stdout


@pytest.mark.parametrize("document", ["README.md", "runs/demo.sh"])
def test_the_commands_that_are_shown_are_commands(document):
    """Each is understood as it stands; nothing is run."""
    lines = re.findall(r"^iris ([a-z]+ .*)$", (HOME / document).read_text(), re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        cli.parser().parse_args(shlex.split(line, comments=True))
