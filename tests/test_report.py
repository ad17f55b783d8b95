"""Tables and pictures from records alone: the same bytes every time, stale ones noticed, forms shown apart."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluations import SETTINGS, write

from iris import InputError, RunError, record
from iris.evaluate.tasks import FIXED, TASKS, take_apart
from iris.report.report import report

ROOT = Path(__file__).resolve().parents[1]
MODEL = {"id": "lab/Tiny-Instruct", "revision": None, "digest": "d1"}
METRICS = {"hellaswag": ("acc_norm", 2000), "arc_challenge": ("acc_norm", 400), "poetry_verses": ("bits_per_byte", 60)}
MARKERS = ["results", "scores base lora16-s1 absent"]
MARKERS += ["rows speed-train,speed-8b method shape steady_tokens_per_s tasks.x.y"]
QUANTS = "rows quants/q8_0,quants/q4_0 settings.quant measures.bytes tasks.kl_divergence.value"


def marked(words):
    return f"<!-- iris:{words} -->\nold\n<!-- /iris:{words.split()[0]} -->\n"


def evaluation(folder, name, gain=0.0, adapter=None, precision="bf16"):
    """An evaluation whose items gain `gain` over the same draws for every name; couplets gain most."""
    settings = SETTINGS | {"precision": precision, "chat_template": "poetry tasks only"}
    rng, tasks = np.random.default_rng(7), {}
    for task, (metric, n) in METRICS.items():
        drawn, noise = rng.random(n), np.random.default_rng(len(name)).random(n)
        values = 2 - gain - drawn / 4 + noise / 50 if task == "poetry_verses" else (drawn + gain > 0.5) ^ (noise < 0.01)
        tasks[task] = (metric, task != "poetry_verses", {"value": [float(value) for value in values]})
    forms = [*FIXED, "free"] * 22
    kept = [form == "free" or (form == "couplet" and gain > 0.02) for form in forms]
    columns = {"keeps": [float(one) for one in kept], "ended": [1.0] * 132}
    columns["strict"] = [None if form == "free" else one / 2 for one, form in zip(kept, forms, strict=True)]
    metrics = {each: {"value": 0.5, "stderr": 0.1, "higher_is_better": True} for each in columns}
    take_apart(TASKS["poetry_form"], forms, columns, metrics)
    entry = {**metrics.pop("keeps"), "others": metrics, "n": 110, "parts": list(FIXED)}
    tasks["poetry_form"] = ("keeps", True, {"value": columns.pop("keeps"), **columns}, entry)
    write(folder / f"{name}.json", tasks, model=MODEL, adapter=adapter, settings=settings)


def training(folder, name, digest, method="lora16", seed=1, data="f"):
    adapter, recipe = {"method": method, "digest": digest}, {"method": method, "seed": seed}
    one = record.Record("training", name, MODEL, status="finished", adapter=adapter, recipe=recipe)
    one.data = {"id": "lab/verses", "fingerprint": data}
    record.write(one, folder / f"{name}.json")
    return adapter


def speed(folder, name, *rows):
    rows = [dict(zip(("who", "shape", "method", "steady_tokens_per_s"), row, strict=True)) for row in rows]
    one = record.Record("speed", name, MODEL, status="finished", measures={"rows": rows})
    record.write(one, folder / f"{name}.json")


@pytest.fixture
def lab(tmp_path):
    """A README with all markers and a document, beside results of a base, two seeds of one recipe that helps, and one
    that does not."""
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results" / "quants", results / "quants")
    (tmp_path / "README.md").write_text("# Title\n\n" + "\n".join(map(marked, MARKERS)))
    (tmp_path / "other.md").write_text(marked(QUANTS))
    evaluation(results, "base")
    for seed in (1, 2):
        adapter = training(results, f"train-s{seed}", f"a{seed}", seed=seed)
        evaluation(results, f"lora16-s{seed}", 0.05 + seed / 100, adapter)
    evaluation(results, "qlora", 0.0, training(results, "train-qlora", "a3", "qlora"))
    ours = ("iris", "1b", "qlora", 70477.3), ("iris", "1b", "lora16", 80000.0)
    speed(results, "speed-train", *ours, ("u-lora-bs=16", "1b", "", 34143.0))
    speed(results, "speed-8b", ("iris", "8b", "qlora", 12500.0))
    return tmp_path


def run(lab, check=False):
    report(lab / "results", [lab / "README.md", lab / "other.md"], check)
    return (lab / "README.md").read_text()


def table(text, name):
    return text.split(f"<!-- iris:{name}")[1].split(" -->\n", 1)[1].split(f"\n<!-- /iris:{name}")[0]


def rows_of(text):
    return {line.split("|")[1].strip().split("<br>")[0]: line for line in text.splitlines() if line.startswith("|")}


def test_the_same_records_give_the_same_bytes_and_check_is_content_with_them(lab):
    readme, picture = lab / "README.md", lab / "results" / "scores.png"
    before = readme.read_text()
    with pytest.raises(RunError, match=r"out of date: .*iris:results of \S+README.md.*rows of \S+other.md.*scores.png"):
        run(lab, check=True)
    assert readme.read_text() == before and not picture.exists()  # a check only looks
    first = run(lab)
    drawn = picture.read_bytes()
    run(lab, check=True)
    picture.unlink()
    assert run(lab) == first and picture.read_bytes() == drawn and b"matplotlib" not in drawn.lower()
    readme.write_text(first.replace("bf16", "fp32"))
    picture.write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"out of date: the table iris:results of \S+, \S+scores\.png; run"):
        run(lab, check=True)


def test_results_state_the_settings_the_differences_and_the_verdicts(lab):
    text = table(run(lab), "results")
    assert "precision bf16, device NVIDIA H100, batch size 8, num fewshot 0" in text and "lm-eval 0.4.13" in text
    assert "HellaSwag<br>acc_norm ↑, n = 2,000" in text and "held-out verses<br>bits_per_byte ↓, n = 60" in text
    scores = rows_of(text.split("2 seeds of one recipe")[0])
    assert scores["lora16-s1"].count("**better, clear of noise**") >= 3 and "lora16, verses" in scores["lora16-s1"]
    assert "**" not in scores["qlora"] and "within noise" in scores["qlora"]
    assert "2 seeds of one recipe (lora16-s1, lora16-s2), mean difference and range: HellaSwag +0.0" in text
    brief = table(run(lab), "scores")  # of runs that are named and known
    assert list(rows_of(brief)) == ["run", "-", "base", "lora16-s1"]
    assert "mean difference" not in brief and "as it came" in brief and "[" not in brief
    evaluation(lab / "results", "odd", 0.3, {"digest": "x"}, precision="fp32")  # is not compared with the others
    text = table(run(lab), "results")
    assert "precision fp32, device NVIDIA H100" in text and "**" not in rows_of(text)["odd"]


def test_poems_are_shown_by_form(lab):
    """A mean with free verse in it, which any two lines keep, would be 0.33; the couplets alone are better."""
    text = table(run(lab), "results")
    head = "poems in five fixed forms<br>keeps ↑, n = 110<br>kept, %: haiku, limerick, couplet, quatrain, sonnet"
    scores = rows_of(text.split("2 seeds of one recipe")[0])
    assert head in text and "0.0000 ± 0.0000<br>keeps 0.0, 0.0, 0.0, 0.0, 0.0" in scores["base"]
    tuned = "keeps 0.0, 0.0, 100.0, 0.0, 0.0<br>strict 0.0, 0.0, 50.0, 0.0, 0.0<br>+0.2000"
    assert f"0.2000 ± 0.0383<br>{tuned} [" in scores["lora16-s1"]
    assert f"| {tuned}<br>**better, clear of noise** |" in table(run(lab), "scores")


def test_seeds_of_one_recipe_are_distinct_and_on_the_same_data(lab):
    training(lab / "results", "train-s2", "a2", seed=2, data="other")
    assert "seeds of one recipe" not in run(lab)
    training(lab / "results", "train-s2", "a2", seed=1)
    assert "seeds of one recipe" not in run(lab)


def test_rows_of_any_records(lab):
    told = table(run(lab), "rows")
    assert "| method | shape | steady tokens per s | x y |" in told and "u-lora" not in told
    assert "| qlora | 1b | 70,477 |   |" in told and "| q4_0 |" not in told
    measures = 'rows base,lora16-s1 name "tasks.poetry_form.others.free ended.value"'
    (lab / "README.md").write_text(marked(measures))  # of whole records, and keys with a space
    assert "| name | free ended |" in run(lab) and "| lora16-s1 | 1 |" in run(lab)
    assert list(rows_of((lab / "other.md").read_text())) == ["quant", "-", "q8_0", "q4_0"]
    assert "| q8_0 | 144,810,880 | 0.003571 |" in (lab / "other.md").read_text()


def test_without_records_the_tables_say_so(tmp_path):
    (tmp_path / "README.md").write_text("".join(map(marked, ("results", "scores a"))))
    report(tmp_path / "results", [tmp_path / "README.md"])
    for name in ("results", "scores"):
        assert table((tmp_path / "README.md").read_text(), name) == "No record of this kind yet."
    report(tmp_path / "results", [tmp_path / "README.md"], check=True)


def test_bad_input_is_one_sentence(lab):
    for text, name in (("<!-- iris:results -->\nnever closed\n", "results"), (marked("export"), "export")):
        (lab / "README.md").write_text(text)
        with pytest.raises(InputError, match=f"iris:{name} --> is none of results, scores, rows, or has no end after"):
            run(lab)
    (lab / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"README\.md"):
        run(lab)
