"""lm-eval, asked by Iris: scores equal to the plain command's, parts kept and reused, every refusal a sentence."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_llama
import torch
from evaluations import samples
from safetensors.torch import load_file, save_file

from iris import InputError, RunError, compare, record
from iris.data import files
from iris.evaluate import evaluate, harness, tasks
from iris.evaluate.evaluate import evaluate as run
from iris.model.load import Source

ITEMS = 100
SUBJECT_ITEMS = 6  # of each of the 19 subjects of mmlu_stem


def make_adapter(folder, base, seed=1, **config):
    """An adapter of a model that changes its output; LoRA unless `config` says otherwise."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    given = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | config
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**given)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, small_model):
    return make_adapter(tmp_path_factory.mktemp("run") / "adapter", small_model)


# --- the scores are lm-eval's own ------------------------------------------------------------------------------------


THREE = {"hellaswag": "hellaswag", "arc_challenge": "arc", "truthfulqa_mc2": "truthfulqa"}


def plain_tasks(folder, data):
    """lm-eval's own task files, unchanged but for their data, which become local files; the names of the tasks."""
    given = {}  # each task's file in lm-eval, and its data by split
    for task, where in THREE.items():
        file = tasks.data_file(data, task)
        given[task] = (f"{where}/{task}.yaml", {"train": file, tasks.TASKS[task].split: file})
    rows = list(files.read_file(tasks.data_file(data, "mmlu_stem")))
    for subject in sorted({row["subject"] for row in rows}):
        file = folder / f"{subject}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows if row["subject"] == subject))
        given[f"mmlu_{subject}"] = (f"mmlu/default/mmlu_{subject}.yaml", {"dev": file, "test": file})
    theirs = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    for task, (source, splits) in given.items():
        changed = {"include": str(theirs / source), "task": f"plain_{task}", "tag": "plain", "dataset_path": "json"}
        data_files = {split: str(path) for split, path in splits.items()}
        changed |= {"dataset_name": None, "dataset_kwargs": {"data_files": data_files}}
        (folder / f"plain_{task}.yaml").write_text(json.dumps(changed))  # which is YAML, too
    return list(given)


@pytest.fixture(scope="session")
def plain(tmp_path_factory, small_model, adapter, data):
    """What `lm_eval run` says of the small model with its adapter, item by item: {task: [sample]}."""
    folder = tmp_path_factory.mktemp("plain")
    names = plain_tasks(folder, data)
    chosen = {f"plain_{n}": list(range(SUBJECT_ITEMS if n.startswith("mmlu") else ITEMS)) for n in names}
    command = [Path(sys.executable).with_name("lm_eval"), *"run --model hf --device cpu --batch_size 8".split()]
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
def ours(tmp_path_factory, small_model, adapter, data):
    """The same through iris evaluate, in one process with the base and a DoRA: a folder of records of three benchmarks,
    and a record of mmlu_stem."""
    folder = tmp_path_factory.mktemp("ours")
    dora = make_adapter(folder / "dora.2" / "adapter", small_model, seed=2, use_dora=True, target_modules=["k_proj"])
    lora = shutil.copytree(adapter, folder / "three" / "adapter")
    made = run(str(small_model), list(THREE), folder, adapters=[dora, lora], limit=ITEMS, data_dir=data)
    assert [one.name for one in made] == ["base", "dora.2", "three"]
    given = {"adapters": [adapter], "limit": SUBJECT_ITEMS, "data_dir": data}
    run(str(small_model), ["mmlu_stem"], folder / "mmlu.json", **given)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", THREE)
def test_scores_equal_the_plain_command_item_by_item(plain, ours, task):
    theirs, results = plain
    mine = samples(ours / "three.json", task)
    assert len(mine) == len(theirs[task]) == ITEMS
    for a, b in zip(mine, theirs[task], strict=True):
        assert a["doc_hash"] == b["doc_hash"] and a["prompt_hash"] == b["prompt_hash"]
        # sums of up to some hundred nats in fp32, whose last digit is 6e-5 there; truthfulqa's acc is made of their exp
        expected = pytest.approx([float(r[0][0]) for r in b["resps"]], rel=1e-6, abs=1e-4)
        assert [float(r[0][0]) for r in a["resps"]] == expected
        assert {m: a[m] for m in a["metrics"]} == pytest.approx({m: b[m] for m in b["metrics"]}, rel=1e-4)
    entry, metric, result = record.read(ours / "three.json").tasks[task], tasks.TASKS[task].metric, f"plain_{task}"
    assert entry["value"] == pytest.approx(results[result][f"{metric},none"], abs=1e-6)
    assert entry["stderr"] == pytest.approx(results[result][f"{metric}_stderr,none"], abs=1e-6)
    assert entry["n"] == ITEMS


@pytest.mark.slow
def test_mmlu_stem_is_the_group_as_lm_eval_aggregates_it(plain, ours):
    expected = {}
    for task, lines in plain[0].items():
        if task.startswith("mmlu_"):
            expected |= {f"{task}/{line['doc_id']}": line["acc"] for line in lines}
    columns = record.read_items(ours / "mmlu.json")["mmlu_stem"]
    assert dict(zip(columns["id"], columns["value"], strict=True)) == expected
    entry = record.read(ours / "mmlu.json").tasks["mmlu_stem"]
    assert entry["n"] == len(expected) == 19 * SUBJECT_ITEMS
    assert entry["value"] == pytest.approx(sum(expected.values()) / len(expected))
    assert entry["stderr"] > 0


def test_adapters_scored_together_score_as_alone(ours, small_model, data, tmp_path):
    for name, given in (("base", []), ("dora.2", [ours / "dora.2" / "adapter"])):
        out = tmp_path / name / "x.json"
        run(str(small_model), ["arc_challenge"], out, adapters=given, limit=ITEMS, data_dir=data)
        alone, together = (samples(path, "arc_challenge") for path in (out, ours / f"{name}.json"))
        assert [one["resps"] for one in alone] == [one["resps"] for one in together]
    scores = [record.read(ours / f"{name}.json").tasks["truthfulqa_mc2"] for name in ("base", "dora.2", "three")]
    assert len({entry["value"] for entry in scores}) == 3


def test_the_record_says_what_was_measured_and_how(ours, small_model, adapter):
    made, items = record.read(ours / "three.json"), record.read_items(ours / "three.json")
    assert (made.kind, made.status, made.name) == ("evaluation", "finished", "three")
    assert made.model["digest"] == record.folder_digest(small_model)
    assert made.adapter["digest"] == record.folder_digest(adapter)
    assert (made.adapter["method"], made.adapter["kind"]) == ("lora", "lora")
    assert (made.settings["limit"], made.settings["precision"], made.settings["num_fewshot"]) == (ITEMS, "fp32", 0)
    assert made.settings["seeds"]["fewshot"] == 1234
    assert made.tasks["hellaswag"]["metric"] == "acc_norm" and "acc" in made.tasks["hellaswag"]["others"]
    assert made.measures["wall_seconds"] > 0 and made.measures["peak_memory_gb"] > 0
    for task, entry in made.tasks.items():
        assert record.digest_of(items[task]) == entry["items_digest"]
        assert sum(items[task]["value"]) / ITEMS == pytest.approx(entry["value"])


def test_poems_are_counted_over_the_fixed_forms_and_shown_by_form():
    forms = [*tasks.FIXED, "free"] * 3
    items = {
        "keeps": [1.0 if form in ("haiku", "free") else 0.0 for form in forms],
        "strict": [None if form == "free" else 0.5 for form in forms],
        "ended": [1.0] * 18,
    }
    metrics = {name: {"value": 9.0, "stderr": 9.0, "higher_is_better": True} for name in items}
    tasks.take_apart(tasks.TASKS["poetry_form"], forms, items, metrics)
    assert metrics["keeps"]["value"] == pytest.approx(0.2) and metrics["strict"]["value"] == 0.5
    assert metrics["keeps"]["stderr"] == pytest.approx((0.2 * 0.8 * 15 / 14 / 15) ** 0.5)
    assert metrics["haiku keeps"]["value"] == 1 and metrics["sonnet keeps"]["value"] == 0
    assert items["keeps"][5] is None and sum(value is not None for value in items["keeps"]) == 15
    assert metrics["ended"]["value"] == 9.0 and metrics["free ended"]["value"] == 1  # of all forms, and of free verse
    assert "free keeps" not in metrics and "free looped" not in metrics


# --- parts: kept, reused, never mistaken -----------------------------------------------------------------------------


class Ran(Exception):
    pass


@pytest.fixture
def asked(monkeypatch):
    """What would be measured: raises Ran instead of scoring."""
    waiting = {}

    def score(source, wanted, settings, data_dir):
        waiting.update(wanted)
        raise Ran

    monkeypatch.setattr(harness, "score", score)
    return waiting


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_finished_tasks_are_reused_only_where_everything_agrees(
    ours, small_model, adapter, data, tmp_path, asked, monkeypatch, capsys
):
    folder = shutil.copytree(ours, tmp_path / "results", ignore=shutil.ignore_patterns("adapter"))
    given = {"adapters": [adapter], "limit": ITEMS, "data_dir": data}
    run(str(small_model), ["arc_challenge"], folder / "new.json", **given)
    assert "already measured" in capsys.readouterr().err
    old, new = (record.read(folder / name).tasks["arc_challenge"] for name in ("three.json", "new.json"))
    assert old == new
    scaled = shutil.copytree(adapter, tmp_path / "scaled" / "adapter")
    edit(scaled / "adapter_config.json", lora_alpha=99)
    (tmp_path / "data" / "arc_challenge").mkdir(parents=True)
    lines = [json.dumps(row) for row in files.read_file(tasks.data_file(data, "arc_challenge"))]
    (tmp_path / "data" / "arc_challenge" / "test.jsonl").write_text("\n".join(lines[:-1]))
    changes = {"limit": ITEMS - 1}, {"batch_size": 4}, {"precision": "bf16"}, {"adapters": [scaled]}
    for change in (*changes, {"data_dir": tmp_path / "data"}):
        with pytest.raises(Ran):
            run(str(small_model), ["arc_challenge"], folder / "new.json", **given | change)
    monkeypatch.setattr(evaluate.metadata, "version", lambda name: "0")
    with pytest.raises(Ran):
        run(str(small_model), ["arc_challenge"], folder / "new.json", **given)


@pytest.mark.parametrize("changed", ["config", "tokenizer", "template"])
def test_a_model_changed_beside_its_weights_is_measured_anew_and_not_compared(small_model, tmp_path, changed):
    """A folder whose config.json, tokenizer.json or chat template was edited has the same weights and other scores."""
    model = shutil.copytree(small_model, tmp_path / "model")
    run(str(model), ["poetry_verses"], tmp_path / "r" / "before.json", limit=3)
    if changed == "config":
        edit(model / "config.json", rms_norm_eps=0.1)
    elif changed == "tokenizer":
        words = json.loads((model / "tokenizer.json").read_text())
        words["model"]["merges"] = words["model"]["merges"][:-100]
        (model / "tokenizer.json").write_text(json.dumps(words))
    else:
        template = model / "chat_template.jinja"
        template.write_text(template.read_text().replace("assistant", "poet"))
    run(str(model), ["poetry_verses"], tmp_path / "r" / "after.json", limit=3)
    before, after = (record.read(tmp_path / "r" / f"{name}.json") for name in ("before", "after"))
    assert before.tasks["poetry_verses"]["value"] != after.tasks["poetry_verses"]["value"]
    assert [name for name in before.model if before.model[name] != after.model[name]] == [changed]
    with pytest.raises(InputError, match=f"the model's {changed}"):
        compare.compare([tmp_path / "r" / "before.json", tmp_path / "r" / "after.json"])


def test_killed_in_mid_task_the_finished_task_is_kept(ours, small_model, adapter, data, tmp_path, asked):
    """In batches of one, which do not move a score."""
    out, two = tmp_path / "killed.json", ["arc_challenge", "hellaswag"]
    given = {"adapters": [str(adapter)], "limit": 30, "data_dir": str(data), "batch_size": 1}
    of = (str(small_model), two, str(out))
    code = f"from iris.evaluate.evaluate import evaluate; evaluate(*{of!r}, **{given!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while not list(out.with_suffix(".parts").glob("arc_challenge-*.json.gz")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not out.exists()
    with pytest.raises(Ran):
        run(*of, **given)
    assert list(asked) == ["hellaswag"]
    one, many = (samples(path, "arc_challenge") for path in (out, ours / "three.json"))
    assert len(one) == 30
    for a, b in zip(one, many, strict=False):
        assert a["acc_norm"] == b["acc_norm"]
        assert [float(r[0][0]) for r in a["resps"]] == pytest.approx([float(r[0][0]) for r in b["resps"]], abs=1e-3)


def test_an_out_of_memory_batch_is_halved_and_said(capsys, monkeypatch):
    class Machine:
        rank, world_size, batch_size_per_gpu, fits = 0, 1, 1, 8
        batch_size = property(lambda self: self.batch_size_per_gpu)

    def score(lm, task_dict, **_):
        if lm.batch_size > lm.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return {"scores of": lm.batch_size}

    machine, settings, nothing = Machine(), {"batch_size": 32, "limit": None}, {"tasks": {}}
    monkeypatch.setattr(harness.lm_eval, "evaluate", score)
    assert harness.ask(machine, "hellaswag", nothing, settings) == {"scores of": 8} and machine.batch_size == 8
    assert "hellaswag: memory ran out; going on with batches of 8" in capsys.readouterr().err
    machine.world_size = 2
    with pytest.raises(RunError, match="memory ran out at batches of 32;"):
        harness.ask(machine, "hellaswag", nothing, settings)
    machine.world_size, machine.fits = 1, 0
    with pytest.raises(RunError, match="memory ran out at batches of 1;"):
        harness.ask(machine, "hellaswag", nothing, settings)


def test_two_processes_lose_no_item_and_count_none_twice(small_model, tmp_path, data):
    """Under accelerate launch; an odd number of items, of which lm-eval fills up the second process's share."""
    given = ["--tasks", "poetry_verses,arc_challenge", "--limit", "7", "--data-dir", data, "--out", tmp_path / "2.json"]
    command = [sys.executable, *"-m accelerate.commands.launch --multi_gpu --num_processes 2".split()]
    command += [*"--main_process_port 0 -m iris evaluate --model".split(), small_model, *given]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    run(str(small_model), ["poetry_verses", "arc_challenge"], tmp_path / "1.json", limit=7, data_dir=data)
    alone, shared = (record.read(tmp_path / f"{each}.json") for each in "12")
    items = [record.read_items(tmp_path / f"{each}.json") for each in "12"]
    assert shared.environment["processes"] == 2
    for task, scores in alone.tasks.items():
        assert shared.tasks[task]["n"] == scores["n"] == 7
        assert shared.tasks[task]["items_hash"] == scores["items_hash"]
        assert items[1][task]["id"] == items[0][task]["id"]
        assert items[1][task]["value"] == pytest.approx(items[0][task]["value"], abs=1e-5)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(tmp_path):
    def refused(words, tasks=("hellaswag",), out="a.json", **given):
        with pytest.raises(InputError, match=words):
            run("smollm2", list(tasks), tmp_path / out, **given)

    refused(r"unknown task 'hellaswg' \(did you mean hellaswag\?\); known: .*poetry", ["arc_challenge", "hellaswg"])
    refused("at least one task", [])
    refused("--limit must be at least 1", limit=0)
    refused("--batch-size must be at least 1", batch_size=-1)
    refused("unknown precision", precision="fp8")
    refused("hellaswag/validation.jsonl.gz, which is not there; check --data-dir", data_dir=tmp_path)
    refused("has no record for each adapter", adapters=["a", "b"])
    refused("has no record for each adapter", out="results", adapters=["x/a", "y/a/adapter"])
    (tmp_path / "file").write_text("")
    refused("cannot be written to", out="file/a.json")


def test_an_adapter_of_another_base_or_of_another_kind_is_refused(small_model, small_tokenizer, adapter, tmp_path):
    def refused(words, model, folder):
        with pytest.raises(InputError, match=words):
            run(str(model), ["poetry_verses"], tmp_path / "a.json", adapters=[folder])

    other = small_llama.make_model(tmp_path / "other", small_tokenizer, seed=1)
    refused(r"was trained on .*model, not on other", other, adapter)
    # With the training record beside it the weights decide, not the name.
    trained = shutil.copytree(adapter, tmp_path / "run" / "adapter")
    base = {"id": "other", "revision": None, "digest": record.folder_digest(small_model)}
    record.write(record.Record("training", "run", base, "finished", {"method": "dora"}), trained.parent / "record.json")
    refused("was trained on other", other, trained)
    refused("is not an adapter", small_model, tmp_path)
    for kind in ("PROMPT_TUNING", "IA3", None):
        edit(trained / "adapter_config.json", peft_type=kind)
        refused(f"is an adapter of kind {kind} with bias=none; Iris scores LoRA", small_model, trained)
    edit(trained / "adapter_config.json", peft_type="LORA", bias="all")
    refused("kind LORA with bias=all", small_model, trained)


def test_what_is_not_finite_is_no_score(small_model, adapter, tmp_path):
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    weights = load_file(broken / "adapter_model.safetensors")
    next(weight for name, weight in weights.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(weights, broken / "adapter_model.safetensors")
    for task, words in (("poetry_verses", "log-likelihoods are not finite"), ("poetry_form", "numbers are not finite")):
        with pytest.raises(RunError, match=words):
            run(str(small_model), [task], tmp_path / "a.json", adapters=[broken], limit=1)
    assert not (tmp_path / "a.json").exists()


def test_without_network_and_without_data_dir_one_sentence(small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RunError, match=r"hellaswag.*no --data-dir") as caught:
        run(str(small_model), ["poetry_verses", "hellaswag"], tmp_path / "a.json", limit=2)
    assert "\n" not in str(caught.value)
    assert "finished tasks (poetry_verses) are kept" in str(caught.value)


def test_names_of_bases_agree_across_owners_and_quantized_copies_and_the_date_is_pinned():
    assert evaluate.bare("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit") == "llama-3.2-1b-instruct"
    assert evaluate.bare("meta-llama/Llama-3.2-1B-Instruct") == evaluate.bare("/models/Llama-3.2-1B-Instruct/")
    arguments = harness.model_arguments(Source("a/b", "a/b", "abc", None))
    assert arguments["chat_template_args"]["date_string"] == "26 Jul 2024" and arguments["revision"] == "abc"
    assert arguments["chat_template_args"]["strftime_now"]("%Y-%m-%d") == "2024-07-26"
