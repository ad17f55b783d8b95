"""lm-eval in a fresh process: scores equal to the plain command's, parts kept and reused, every refusal a sentence."""

import gzip
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import small_llama
import torch

from iris import benchmarks, chat, evaluate, record
from iris.errors import InputError, RunError
from iris.evaluate import evaluate as run
from iris.model import Source

ITEMS = 100
SUBJECT_ITEMS = 6  # of each of the 19 subjects of mmlu_stem


@pytest.fixture(scope="session")
def small_tokenizer():
    return small_llama.make_tokenizer()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory, small_tokenizer):
    return small_llama.make_model(tmp_path_factory.mktemp("small") / "model", small_tokenizer)


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, small_model):
    """A LoRA adapter of the small model that changes its output."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(small_model)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("run") / "adapter"
    adapted.save_pretrained(folder)
    return folder


def samples(out, task):
    """lm-eval's samples of a task, from the part beside the record at `out`."""
    (part,) = out.with_suffix(".parts").glob(f"{task}-*.json.gz")
    return json.loads(gzip.decompress(part.read_bytes()).splitlines()[1])["samples"]


# --- the scores are lm-eval's own ------------------------------------------------------------------------------------


def plain_tasks(folder, data):
    """lm-eval's own task files, unchanged but for their data, which become local files; the names of the tasks."""
    lm_eval = Path(importlib.util.find_spec("lm_eval").origin).parent
    sources = {
        "hellaswag": lm_eval / "tasks/hellaswag/hellaswag.yaml",
        "arc_challenge": lm_eval / "tasks/arc/arc_challenge.yaml",
        "truthfulqa_mc2": lm_eval / "tasks/truthfulqa/truthfulqa_mc2.yaml",
    }
    for task, source in sources.items():
        write_task(folder, task, source, benchmarks.data_files(data, task))
    rows = {split: benchmarks._read_rows(path) for split, path in benchmarks.data_files(data, "mmlu_stem").items()}
    subjects = sorted({row["subject"] for row in rows["test"]})
    for subject in subjects:
        files = {}
        for split, part in rows.items():
            files[split] = folder / f"{subject}-{split}.jsonl"
            files[split].write_text("".join(json.dumps(row) + "\n" for row in part if row["subject"] == subject))
        write_task(folder, f"mmlu_{subject}", lm_eval / f"tasks/mmlu/default/mmlu_{subject}.yaml", files)
    return [*sources, *(f"mmlu_{subject}" for subject in subjects)]


def write_task(folder, task, source, files):
    data_files = "".join(f"    {split}: {path}\n" for split, path in files.items())
    (folder / f"plain_{task}.yaml").write_text(
        f"include: {source}\ntask: plain_{task}\ntag: plain\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files:\n{data_files}"
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory, small_model, adapter):
    """What `lm_eval run` says of the small model with its adapter, item by item: {task: [sample]}."""
    from conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("the folder of real benchmark data is not beside this checkout")
    folder = tmp_path_factory.mktemp("plain")
    names = plain_tasks(folder, SHARED)
    chosen = {f"plain_{n}": list(range(SUBJECT_ITEMS if n.startswith("mmlu") else ITEMS)) for n in names}
    command = [
        Path(sys.executable).with_name("lm_eval"),
        "run",
        "--model",
        "hf",
        "--device",
        "cpu",
        "--batch_size",
        "8",
    ]
    command += ["--model_args", f"pretrained={small_model},peft={adapter},dtype=float32"]
    command += ["--include_path", folder, "--tasks", ",".join(chosen), "--samples", json.dumps(chosen)]
    command += ["--log_samples", "--output_path", folder / "out"]
    environment = {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for path in (folder / "out").rglob("samples_plain_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name.removeprefix("samples_plain_").rsplit("_", 1)[0]] = sorted(lines, key=lambda s: s["doc_id"])
    (results,) = (folder / "out").rglob("results_*.json")
    return found, json.loads(results.read_text())["results"]


@pytest.fixture(scope="session")
def ours(tmp_path_factory, small_model, adapter, plain):
    """The same through iris evaluate: a record of three benchmarks and one of mmlu_stem."""
    from conftest import SHARED

    folder = tmp_path_factory.mktemp("ours")
    three = ["hellaswag", "arc_challenge", "truthfulqa_mc2"]
    run(str(small_model), adapter, three, folder / "three.json", limit=ITEMS, data_dir=SHARED)
    run(str(small_model), adapter, ["mmlu_stem"], folder / "mmlu.json", limit=SUBJECT_ITEMS, data_dir=SHARED)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["hellaswag", "arc_challenge", "truthfulqa_mc2"])
def test_scores_equal_the_plain_command_item_by_item(plain, ours, task):
    theirs, results = plain
    mine = samples(ours / "three.json", task)[task]
    assert len(mine) == len(theirs[task]) == ITEMS
    for a, b in zip(mine, theirs[task], strict=True):
        assert a["doc_hash"] == b["doc_hash"] and a["prompt_hash"] == b["prompt_hash"]
        # sums of up to some hundred nats in fp32, whose last digit is 6e-5 there; truthfulqa's acc is made of their exp
        expected = pytest.approx([float(r[0][0]) for r in b["resps"]], rel=1e-6, abs=1e-4)
        assert [float(r[0][0]) for r in a["resps"]] == expected
        assert {m: a[m] for m in a["metrics"]} == pytest.approx({m: b[m] for m in b["metrics"]}, rel=1e-4)
    entry = record.read(ours / "three.json").tasks[task]
    metric = evaluate.METRIC[task]
    assert entry["value"] == pytest.approx(results[f"plain_{task}"][f"{metric},none"], abs=1e-6)
    assert entry["stderr"] == pytest.approx(results[f"plain_{task}"][f"{metric}_stderr,none"], abs=1e-6)
    assert entry["n"] == ITEMS


@pytest.mark.slow
def test_mmlu_stem_is_the_group_as_lm_eval_aggregates_it(plain, ours):
    theirs, _ = plain
    subjects = {task: lines for task, lines in theirs.items() if task.startswith("mmlu_")}
    assert len(subjects) == 19
    columns = record.read_items(ours / "mmlu.json")["mmlu_stem"]
    scores = dict(zip(columns["id"], columns["value"], strict=True))
    expected = {f"{task}/{line['doc_id']}": line["acc"] for task, lines in subjects.items() for line in lines}
    assert scores == expected
    entry = record.read(ours / "mmlu.json").tasks["mmlu_stem"]
    assert entry["n"] == len(expected) == 19 * SUBJECT_ITEMS
    assert entry["value"] == pytest.approx(sum(expected.values()) / len(expected))
    assert entry["stderr"] > 0


def test_the_record_says_what_was_measured_and_how(ours, small_model, adapter):
    made = record.read(ours / "three.json")
    assert (made.kind, made.status, made.name) == ("evaluation", "finished", "three")
    assert made.model["digest"] == record.folder_digest(small_model)
    assert made.adapter == {"path": str(adapter), "digest": record.folder_digest(adapter), "method": "lora"}
    assert made.settings["limit"] == ITEMS and made.settings["precision"] == "fp32"
    assert made.settings["num_fewshot"] == 0 and made.settings["seeds"]["fewshot"] == 1234
    assert made.tasks["hellaswag"]["metric"] == "acc_norm" and "acc" in made.tasks["hellaswag"]["others"]
    assert made.measures["wall_seconds"] > 0 and made.measures["peak_memory_gb"] > 0
    assert made.environment["lm_eval"]["lm_eval_version"] == "0.4.13"
    items = record.read_items(ours / "three.json")
    for task, entry in made.tasks.items():
        assert record.digest_of(items[task]) == entry["items_digest"]
        assert sum(items[task]["value"]) / ITEMS == pytest.approx(entry["value"])


# --- parts: kept, reused, never mistaken -----------------------------------------------------------------------------


def test_finished_tasks_are_reused_only_where_everything_agrees(
    ours, small_model, adapter, shared_data, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "results"
    shutil.copytree(ours, folder)
    jobs = []
    monkeypatch.setattr(evaluate, "_run", lambda _, job: jobs.append(job) or pytest.fail("ran again"))
    run(str(small_model), adapter, ["arc_challenge"], folder / "new.json", limit=ITEMS, data_dir=shared_data)
    assert "already measured" in capsys.readouterr().err
    old, new = (record.read(folder / name).tasks["arc_challenge"] for name in ("three.json", "new.json"))
    assert old == new

    class Ran(Exception):
        pass

    def ran(process, job):
        raise Ran

    monkeypatch.setattr(evaluate, "_run", ran)
    changes = [
        {"limit": ITEMS - 1},
        {"batch_size": 4},
        {"precision": "bf16"},
        {"adapter": None},
        {"data_dir": copied(shared_data, tmp_path)},
    ]
    for change in changes:
        given = {"adapter": adapter, "limit": ITEMS, "data_dir": shared_data} | change
        with pytest.raises(Ran):
            run(str(small_model), tasks=["arc_challenge"], out=folder / "new.json", **given)
    monkeypatch.setattr(evaluate.metadata, "version", lambda name: "0")
    with pytest.raises(Ran):
        run(str(small_model), adapter, ["arc_challenge"], folder / "new.json", limit=ITEMS, data_dir=shared_data)


def copied(data, folder):
    """A copy of the ARC data with one row less."""
    target = folder / "data" / "arc_challenge"
    target.mkdir(parents=True)
    for split, path in benchmarks.data_files(data, "arc_challenge").items():
        rows = benchmarks._read_rows(path)
        (target / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    return target.parent


@pytest.fixture(scope="session")
def killed(tmp_path_factory, small_model, adapter, plain):
    """A run of arc_challenge and hellaswag in batches of one, killed as soon as arc_challenge was finished."""
    from conftest import SHARED

    out = tmp_path_factory.mktemp("killed") / "killed.json"
    arguments = (str(small_model), str(adapter), ["arc_challenge", "hellaswag"], str(out), 30, str(SHARED), "auto", 1)
    code = f"from iris.evaluate import evaluate; evaluate(*{arguments!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while not list(out.with_suffix(".parts").glob("arc_challenge-*.json.gz")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        (worker,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
        process.wait()
        worker.wait(timeout=30)  # it ends with its parent
    finally:
        process.kill()
    return out


def test_killed_in_mid_task_the_finished_task_is_kept(killed, small_model, adapter, shared_data, monkeypatch):
    assert not killed.exists()
    waiting = []
    monkeypatch.setattr(evaluate, "_run", lambda _, job: waiting.extend(job["tasks"]) or 0.0)
    with pytest.raises(RunError, match=r"hellaswag.* is damaged"):  # for nothing ran
        run(str(small_model), adapter, ["arc_challenge", "hellaswag"], killed, 30, data_dir=shared_data, batch_size=1)
    assert [task["name"] for task in waiting] == ["hellaswag"]


def test_batch_size_does_not_move_a_score(killed, ours):
    one, eight = (samples(out, "arc_challenge")["arc_challenge"] for out in (killed, ours / "three.json"))
    assert len(one) == 30
    for a, b in zip(one, eight, strict=False):
        assert a["acc_norm"] == b["acc_norm"]
        assert [float(r[0][0]) for r in a["resps"]] == pytest.approx([float(r[0][0]) for r in b["resps"]], abs=1e-3)


def test_an_out_of_memory_batch_is_halved_and_said():
    tried, said = [], []

    def attempt(batch_size):
        tried.append(batch_size)
        if batch_size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return "scores"

    assert benchmarks.halve_until_it_fits(attempt, 32, said.append) == ("scores", 8)
    assert tried == [32, 16, 8]
    assert said == [f"memory ran out; going on with batches of {size}" for size in (16, 8)]

    def never(batch_size):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RunError, match="memory ran out at batches of 1;"):
        benchmarks.halve_until_it_fits(never, 4, said.append)

    def broken(batch_size):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        benchmarks.halve_until_it_fits(broken, 4, said.append)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_unknown_tasks_are_answered_with_the_known(tmp_path):
    with pytest.raises(InputError, match=r"unknown task 'hellaswg' \(did you mean hellaswag\?\); known: .*poetry"):
        run("smollm2", None, ["arc_challenge", "hellaswg"], tmp_path / "a.json")
    with pytest.raises(InputError, match="at least one task"):
        run("smollm2", None, [], tmp_path / "a.json")


def test_bad_numbers_and_names_are_refused_before_anything_is_loaded(tmp_path):
    for words, given in {
        "--limit must be at least 1": {"limit": 0},
        "--batch-size must be at least 1": {"batch_size": -1},
        "unknown precision": {"precision": "fp8"},
        "is not there; check --data-dir": {"data_dir": tmp_path},
    }.items():
        with pytest.raises(InputError, match=words):
            run("smollm2", None, ["hellaswag"], tmp_path / "a.json", **given)
    with pytest.raises(InputError, match=r"should name a \.json file"):
        run("smollm2", None, ["hellaswag"], tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        run("smollm2", None, ["hellaswag"], tmp_path / "file" / "a.json")


def test_an_adapter_of_another_base_is_refused(small_model, small_tokenizer, adapter, tmp_path):
    other = small_llama.make_model(tmp_path / "other", small_tokenizer, seed=1)
    with pytest.raises(InputError, match=r"was trained on .*model, not on other"):
        run(str(other), adapter, ["poetry_verses"], tmp_path / "a.json")
    # With the training record beside it the weights decide, not the name.
    trained = tmp_path / "run"
    shutil.copytree(adapter, trained / "adapter")
    base = {"id": "other", "revision": None, "digest": record.folder_digest(small_model)}
    record.write(record.Record("training", "run", base, "finished", {"method": "dora"}), trained / "record.json")
    with pytest.raises(InputError, match="was trained on other"):
        run(str(other), trained / "adapter", ["poetry_verses"], tmp_path / "a.json")
    with pytest.raises(InputError, match="is not an adapter"):
        run(str(small_model), tmp_path, ["poetry_verses"], tmp_path / "a.json")


def test_without_network_and_without_data_dir_one_sentence(small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RunError, match=r"hellaswag.*no --data-dir") as caught:
        run(str(small_model), None, ["poetry_verses", "hellaswag"], tmp_path / "a.json", limit=2)
    assert "\n" not in str(caught.value)
    assert "finished tasks (poetry_verses) are kept" in str(caught.value)


def test_names_of_bases_agree_across_owners_and_quantized_copies():
    assert evaluate._bare("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit") == "llama-3.2-1b-instruct"
    assert evaluate._bare("meta-llama/Llama-3.2-1B-Instruct") == evaluate._bare("/models/Llama-3.2-1B-Instruct/")


def test_the_template_date_is_pinned():
    source = Source("a/b", "a/b", "abc", None)
    arguments = evaluate._model_args(source, None, "bf16")
    assert arguments["chat_template_args"] == {"date_string": chat.TEMPLATE_DATE}
    assert arguments["revision"] == "abc" and arguments["dtype"] == "bfloat16"
