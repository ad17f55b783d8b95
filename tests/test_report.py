"""Tables and pictures from records alone: the same bytes every time, stale ones noticed, the seed's sums done again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iris import pictures, record
from iris.errors import InputError, RunError
from iris.report import TABLES, report

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {"torch": "2.13.0", "transformers": "5.17.0", "peft": "0.21.2", "lm_eval": "0.4.13"}
MODEL = {"id": "lab/Tiny-Instruct", "revision": None, "digest": "d1"}
METRICS = {"hellaswag": ("acc_norm", 2000), "arc_challenge": ("acc_norm", 400), "poetry_verses": ("bits_per_byte", 60)}
README = "# Title\n\n" + "".join(
    f"## {name}\n\n<!-- iris:{name} -->\nold\n<!-- /iris:{name} -->\n\n" for name in TABLES
)


def evaluation(folder, name, gain=0.0, adapter=None, limit=None, status="finished", model=MODEL, precision="bf16"):
    """An evaluation whose items gain `gain` over the same draws for every name."""
    settings = {"precision": precision, "device": "cuda", "batch_size": 32, "limit": limit, "num_fewshot": 0}
    settings["chat_template"] = "poetry tasks only"
    one = record.Record("evaluation", name, model, status=status, adapter=adapter, settings=settings)
    one.environment |= {"packages": dict(VERSIONS), "device": "NVIDIA H100"}
    rng, items = np.random.default_rng(7), {}
    for task, (metric, n) in METRICS.items():
        drawn, noise = rng.random(n), np.random.default_rng(len(name)).random(n)
        values = 2 - gain - drawn / 4 + noise / 50 if task == "poetry_verses" else (drawn + gain > 0.5) ^ (noise < 0.01)
        items[task] = {"id": [str(i) for i in range(n)], "value": [float(value) for value in values]}
        one.tasks[task] = {"metric": metric, "value": float(np.mean(values)), "stderr": float(np.std(values) / n**0.5)}
        one.tasks[task] |= {"higher_is_better": task != "poetry_verses", "n": n, "version": 1.0, "num_fewshot": 0}
        one.tasks[task] |= {"items_hash": "h", "items_digest": record.digest_of(items[task]), "others": {}}
    record.write_items(folder / f"{name}.json", items)
    record.write(one, folder / f"{name}.json")


def training(folder, name, digest, method="lora16", seed=1, status="finished"):
    adapter = {"path": "adapter", "method": method, "digest": digest}
    recipe = {"method": method, "r": 16, "learning_rate": 2e-4, "seed": seed}
    one = record.Record("training", name, MODEL, status=status, adapter=adapter, recipe=recipe)
    one.data = {"id": "lab/verses", "rows": 1200}
    one.settings = {"device": "NVIDIA H100", "precision": "bf16"}
    one.measures = {"steps": 50, "tokens": 800_000, "wall_seconds": 200 + 10 * seed, "tokens_per_s": 41234.5}
    one.measures |= {"peak_memory_gb": 9.25, "loss_first": 3.2, "loss_last": 2.1}
    one.measures["losses"] = [2 + 1.2 * 0.93**step + 0.05 * (step % 3) for step in range(50)]
    record.write(one, folder / f"{name}.json")
    return adapter


def speed(folder, name, rows, **settings):
    told = {"device": "NVIDIA H100", "steps": 30, "set": ["batch_size=1"]} | settings
    one = record.Record("speed", name, MODEL, status="finished", settings=told, measures={"rows": rows})
    record.write(one, folder / f"{name}.json")


def trained(shape, method, rate, memory, who="iris"):
    row = {"who": who, "shape": shape, "steady_tokens_per_s": rate, "step_seconds": 0.25, "peak_memory_gb": memory}
    return row | ({"method": method, "precision": "bf16", "losses": [1, 2]} if who == "iris" else {})


def written(who, quant, rate, memory, **shape):
    row = {"who": who, "quant": quant, "file_gb": 0.77, "load_seconds": 1.0, "prompt_tokens_per_s": 3 * rate}
    return row | {"generation_tokens_per_s": rate, "peak_memory_gb": memory, "bandwidth_ratio": 0.6} | shape


def others(folder):
    peer = trained("1b", "", 34143.0, 37.2, who="u-lora-bs=16-pack=1")
    rows = [trained("1b", "qlora", 70477.3, 22.4), trained("1b", "lora16", 80000.0, 23.8), peer]
    speed(folder, "speed-train", [*rows, trained("8b", "qlora", 12500.0, 61.0)])
    rows = [written("xllamacpp", "q4_0", 27.0, 1.5, shape="1b"), written("xllamacpp", "q8_0", 17.5, 1.5, shape="1b")]
    rows += [written("xllamacpp", "q4_0", 11.0, 3.8, shape="3b"), written("xllamacpp", "q4_0", 4.9, 8.9, shape="8b")]
    speed(folder, "speed-infer", rows, device="2 cores")
    export = record.Record("export", "poet", MODEL, status="finished", adapter={"method": "dora"})
    export.measures = {"bytes_f16": 270_000_000, "bytes_q8_0": 144_500_000, "wall_seconds": 33.0}
    record.write(export, folder / "export-poet.json")


@pytest.fixture
def lab(tmp_path):
    """A README with all markers beside results of a base, two seeds of one recipe that helps, and one that does not."""
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(ROOT / "results" / "seed.json", results)
    (tmp_path / "README.md").write_text(README)
    evaluation(results, "base")
    for seed in (1, 2):
        evaluation(
            results, f"lora16-s{seed}", 0.05 + seed / 100, training(results, f"train-s{seed}", f"a{seed}", seed=seed)
        )
    evaluation(results, "qlora", 0.0, training(results, "train-qlora", "a3", "qlora"))
    others(results)
    return tmp_path


def run(lab, check=False):
    report(lab / "results", lab / "README.md", check)
    return (lab / "README.md").read_text()


def table(text, name):
    return text.split(f"<!-- iris:{name} -->\n")[1].split(f"\n<!-- /iris:{name} -->")[0]


def test_the_same_records_give_the_same_bytes_and_check_is_content_with_them(lab):
    with pytest.raises(RunError, match="README.md.*scores.png.*out of date: run `iris report`"):
        run(lab, check=True)
    assert (lab / "README.md").read_text() == README  # a check writes nothing
    assert not list((lab / "results").glob("*.png"))
    first = run(lab)
    drawn = {path.name: path.read_bytes() for path in (lab / "results").glob("*.png")}
    assert set(drawn) == {"scores.png", "cost.png", "loss.png", "speed.png"}
    run(lab, check=True)
    for path in (lab / "results").glob("*.png"):
        path.unlink()
    assert run(lab) == first
    assert {path.name: path.read_bytes() for path in (lab / "results").glob("*.png")} == drawn
    assert b"matplotlib" not in b"".join(drawn.values()).lower()


def test_results_state_the_settings_the_differences_and_the_verdicts(lab):
    text = table(run(lab), "results")
    assert "zero-shot, no chat template" in text and "bf16 on NVIDIA H100, batches of 32, lm-eval 0.4.13" in text
    assert "HellaSwag<br>acc_norm ↑, n = 2,000" in text and "held-out verses<br>bits_per_byte ↓, n = 60" in text
    rows = {line.split("|")[1].strip().split("<br>")[0]: line for line in text.splitlines() if line.startswith("|")}
    assert rows["lora16-s1"].count("**better, clear of noise**") >= 2 and "lora16, verses" in rows["lora16-s1"]
    assert "**" not in rows["qlora"] and "within noise" in rows["qlora"]
    assert "Better, clear of noise: lora16-s1 (HellaSwag" in text and "Worse" not in text
    assert "2 seeds of one recipe (lora16-s1, lora16-s2), mean difference and range: HellaSwag +0.0" in text
    assert rows["Llama-3.2-1B-Instruct"].count("not measured here") == 4


def test_where_nothing_helps_the_table_says_so(lab):
    for seed in (1, 2):
        (lab / "results" / f"lora16-s{seed}.json").unlink()
    assert "No run is better, clear of noise." in table(run(lab), "results")


def test_the_other_tables(lab):
    text = run(lab)
    methods = table(text, "methods")
    assert (
        "| train-qlora | qlora | verses, 1,200 rows | 16 | 0.0002 | 50 | 800,000 | 3.5 min | 41,234 | 9.2 GB |"
        in methods
    )
    assert "3.200 → 2.100" in methods and "[" in methods  # the price stands beside what it brought
    assert "F16 270 MB, Q8_0 144 MB" in table(text, "export")


def test_one_table_joins_training_and_writing_by_size(lab):
    told = table(run(lab), "speed")
    rows = {line.split("|")[1].strip(): line for line in told.splitlines() if line.startswith("|")}
    assert "| qlora<br>lora16<br>dora | 70,477<br>80,000<br>not measured here | 0.25 s<br>0.25 s<br>" in rows["**1B**"]
    assert "| Q4_0<br>Q8_0 |" in rows["**1B**"] and "| 27.0<br>17.5 | 1.5 GB<br>1.5 GB | 60%<br>60% |" in rows["**1B**"]
    assert "| not measured here |" in rows["**3B**"] and "| qlora<br>dora<br>lora16 | 12,500<br>" in rows["**8B**"]
    assert list(rows)[2:5] == ["**1B**", "**3B**", "**8B**"]
    assert "losses" not in told and "training on NVIDIA H100; GGUF on 2 cores" in told
    assert "| lora16 | 80,000 tokens/s, 23.8 GB | 34,143 tokens/s, 37.2 GB |" in told  # beside the peer
    assert "| 1B | Iris | Unsloth (bs=16, pack=1) |" in told


def test_the_sentence_on_sizes_follows_the_record(lab):
    told = table(run(lab), "speed")
    assert "the 1B as Q4_0 where the page is watched while it writes (20 tokens/s; it writes 27.0, in 1.5 GB" in told
    assert "the 3B as Q4_0 where the page writes as fast as people read (5 tokens/s; it writes 11.0" in told
    assert "12 s and 24 GB for the 1B (lora16), 80 s and 61 GB for the 8B (qlora)" in told
    memory = record.Record("export", "export-memory-8b", MODEL, status="finished", settings={"shape": "8b"})
    memory.measures = {"peak_memory_gb": 9.493, "wall_seconds": 428.3}
    record.write(memory, lab / "results" / "export-memory-8b.json")
    rows = [written("xllamacpp", "q4_0", 19.9, 1.5, shape="1b"), written("xllamacpp", "q8_0", 5.0, 8.9, shape="8b")]
    speed(lab / "results", "speed-infer", rows, device="2 cores")
    told = table(run(lab), "speed")
    assert "no size where the page is watched" in told and "the 8B as Q8_0 where the page writes as fast" in told
    assert "`iris export` takes at its peak, recital included, 9.5 GB for the 8B." in told


def test_engines_stand_side_by_side_and_a_t4_by_itself(lab):
    rows = [written("xllamacpp", "q4_0", 26.7, 1.5), written("llama.cpp, built", "q4_0", 33.5, 1.6)]
    rows.append(written("transformers", "bf16", 5.4, 3.0))
    speed(lab / "results", "speed-engines", rows, device="2 cores", prompt_tokens=256, written_tokens=64)
    speed(lab / "results", "speed-t4", [trained("1b", "dora", 2000.0, 11.0) | {"precision": "fp16"}], as_t4=True)
    told = table(run(lab), "speed")
    assert "| GGUF | xllamacpp | llama.cpp, built | transformers |" in told
    assert "| bf16 |  |  | reads 16.2, writes 5.4 tokens/s<br>60% of the bandwidth, 3.0 GB |" in told
    assert "NVIDIA H100, 30 steps, batch_size=1" in told and "| 1B | dora | 2,000 | 0.25 s | 11.0 GB | fp16 |" in told
    assert told.count("2,000 ") == 1  # not in the table of sizes
    assert (lab / "results" / "speed.png").exists()


def test_quantizations_and_poems_have_their_tables(lab):
    shutil.copytree(ROOT / "results" / "quants", lab / "results" / "quants")
    given = {"form": "haiku", "theme": "rain", "base": "It rains a lot.\nYes.", "tuned": "<b>rain</b>\non | tin"}
    told = {"poems": [given], "training_seconds": 240.0}
    recital = record.Record("export", "recital", MODEL, "finished", measures=told)
    record.write(recital, lab / "results" / "recital.json")
    text = run(lab)
    assert "| haiku: rain | It rains a lot.<br>Yes. | &lt;b&gt;rain&lt;/b&gt;<br>on / tin |" in table(text, "poems")
    assert "after 4 minutes of training" in table(text, "poems")
    assert "| q4_k_m | 105 |" in table(text, "quants") and "**q8_0** is what the rule picks" in table(text, "quants")
    run(lab, check=True)
    slower = record.read(lab / "results" / "quants" / "q4_0.json")
    slower.measures["generation_tokens_per_s"] = 1.0
    record.write(slower, lab / "results" / "quants" / "q4_0.json")
    with pytest.raises(RunError, match=r"iris:quants .*quants.png are out of date"):
        run(lab, check=True)


def test_only_finished_full_records_enter(lab, capsys):
    before = run(lab)
    evaluation(lab / "results", "limited", 0.3, {"digest": "x"}, limit=50)
    evaluation(lab / "results", "broken", 0.3, {"digest": "x"}, status="failed")
    training(lab / "results", "train-stopped", "x", status="stopped")
    assert run(lab) == before
    told = capsys.readouterr().out
    assert "limited.json: limited to 50 items" in told and "train-stopped.json: the run stopped" in told


def test_of_a_speed_measurement_the_finished_rows_enter_if_it_was_stopped_but_not_if_it_failed(lab):
    for name, status, rate in (("cut-off", "stopped", 21155.0), ("broken", "failed", 33333.0)):
        speed(lab / "results", name, [trained("3b", "lora16", rate, 62.6)])
        one = record.read(lab / "results" / f"{name}.json")
        one.status = status
        record.write(one, lab / "results" / f"{name}.json")
    told = table(run(lab), "speed")
    assert "| lora16<br>qlora<br>dora | 21,155<br>not measured here<br>not measured here |" in told
    assert "33,333" not in told


def test_of_a_training_speed_that_was_measured_again_the_latest_counts(lab):
    for name, day, rate in (("a-new", "02", 21500.0), ("b-old", "01", 11111.0)):
        speed(lab / "results", name, [trained("3b", "lora16", rate, 62.6)])
        one = record.read(lab / "results" / f"{name}.json")
        record.write(replace(one, started=f"2026-01-{day}T00:00:00Z"), lab / "results" / f"{name}.json")
    told = table(run(lab), "speed")
    assert "| lora16<br>qlora<br>dora | 21,500<br>not" in told and "11,111" not in told


def test_a_run_under_other_settings_is_not_compared(lab):
    evaluation(lab / "results", "odd", 0.3, {"digest": "x"}, precision="fp32")
    text = table(run(lab), "results")
    assert "fp32 on NVIDIA H100" in text and "Nothing was compared" in text


def test_check_notices_every_kind_of_staleness(lab):
    text = run(lab)
    (lab / "README.md").write_text(text.replace("zero-shot", "five-shot"))
    with pytest.raises(RunError, match=r"the table iris:results of \S+ is out of date"):
        run(lab, check=True)
    run(lab)
    (lab / "results" / "loss.png").write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"loss\.png is out of date"):
        run(lab, check=True)
    run(lab)
    training(lab / "results", "train-new", "a9")
    with pytest.raises(RunError, match=r"iris:methods of \S+, \S+loss\.png are out of date"):
        run(lab, check=True)


def test_a_picture_is_stale_when_its_drawing_changes_and_gone_when_it_has_nothing_to_show(lab, monkeypatch):
    run(lab)
    monkeypatch.setitem(pictures.PICTURES, "cost", pictures.draw_loss)
    with pytest.raises(RunError, match=r"\S+cost\.png is out of date"):
        run(lab, check=True)
    monkeypatch.undo()
    for path in (lab / "results").glob("*train*.json"):
        path.unlink()
    run(lab)
    assert {path.name for path in (lab / "results").glob("*.png")} == {"scores.png", "speed.png"}
    run(lab, check=True)


def test_the_seed_table_is_quoted_and_its_sums_are_done_again(lab):
    text = table(run(lab), "seed")
    seed = json.loads((ROOT / "results" / "seed.json").read_text())
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    for name, scores in {"base": seed["base"], **seed["runs"]}.items():
        assert all(f"{score:.4f}" in rows[name] for score in scores.values())
    assert "as reported, not ours" in text
    assert "+0.0088 ±" in rows["16-bit LoRA"] and "+1.04%, wrong: it is +0.88%" in rows["16-bit LoRA"]
    assert "+0.0093 ±" in rows["Nitral"] and "+1.13%, wrong: it is +0.93%" in rows["Nitral"]
    assert "0.3652 ± 0.0141 | 0.5798 ± 0.0049 | 0.3635 ± 0.0086 | 0.4367 ± 0.0140" in rows["base"]
    assert "clear of noise: HellaSwag of Nitral, HellaSwag of 16-bit LoRA + Nitral." in text
    assert rows["Llama-3.2-1B-Instruct (ours)"].count("not measured here") == 4


def test_our_own_measurement_stands_beside_the_seeds(lab):
    evaluation(
        lab / "results", "llama", model={"id": "meta-llama/Llama-3.2-1B-Instruct", "revision": "r", "digest": None}
    )
    text = run(lab)
    assert "| llama (ours) | 0." not in table(text, "results")
    assert "| llama (ours) | 0." in table(text, "seed") and "Llama-3.2-1B-Instruct (ours)" not in table(text, "seed")


def test_without_records_the_tables_say_so(tmp_path):
    (tmp_path / "README.md").write_text(README)
    text = run(tmp_path)
    assert "Llama-3.2-1B-Instruct | not measured here" in table(text, "results")
    for name in ("methods", "speed", "export"):
        assert table(text, name) == "No record of this kind yet."
    run(tmp_path, check=True)


def test_bad_input_is_one_sentence(lab):
    (lab / "README.md").write_text("<!-- iris:results -->\nnever closed\n")
    with pytest.raises(InputError, match=r"has no <!-- /iris:results --> after it"):
        run(lab)
    (lab / "README.md").write_text("no markers, left as it is\n")
    assert run(lab) == "no markers, left as it is\n"
    (lab / "README.md").unlink()
    with pytest.raises(InputError, match=r"there is no .*README\.md"):
        run(lab)
    (lab / "README.md").write_text(README)
    path = lab / "results" / "qlora.json"
    path.write_text(path.read_text().replace("0.4", "0.9"))
    with pytest.raises(InputError, match="was changed after it was written"):
        run(lab)
