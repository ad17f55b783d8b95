"""What the notebooks lean on: choices that fit the machine, and runs that go on where they were, on a tiny model."""

import os
import shutil
import subprocess
import sys

import pytest
from hub_server import HubServer

from iris import notebook, record
from iris.errors import InputError


@pytest.fixture(autouse=True)
def no_gpu_no_account_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr("iris.hardware.device", lambda: "cpu")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.chdir(tmp_path)


def test_without_a_gpu_it_is_a_taste_of_the_embedded_default(capsys):
    chosen = notebook.choices()
    assert (chosen.recipe.model, chosen.recipe.method, chosen.recipe.data) == ("smollm2", "lora16", "verses")
    assert chosen.recipe.max_steps == 10 and chosen.minutes is None
    assert chosen.tasks == ["poetry_verses"] and chosen.trials == 3
    assert "a taste of 10 steps" in capsys.readouterr().out


def test_minutes_are_obeyed_and_bound_all_of_the_data():
    chosen = notebook.choices(minutes=30)
    assert chosen.minutes == 30 and chosen.recipe.max_steps == -1


@pytest.mark.parametrize(("token", "model"), [("hf_x", "llama-3.2-1b"), (None, "smollm2")])
def test_with_a_gpu_it_is_llama_where_there_is_a_token(monkeypatch, token, model):
    monkeypatch.setattr("iris.hardware.device", lambda: "cuda")
    monkeypatch.setattr("iris.hardware.device_name", lambda: "Tesla T4")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    chosen = notebook.choices(method="qlora")
    assert (chosen.recipe.model, chosen.recipe.max_steps) == (model, -1)
    assert len(chosen.tasks) == 6 and chosen.trials == 12


def test_where_checkpoints_are_kept():
    assert notebook.choices(name="night").recipe.push_checkpoints is None
    assert notebook.choices(keep="user/kept").recipe.push_checkpoints == "user/kept"
    with pytest.raises(InputError, match="for Colab only"):
        notebook.choices(keep="drive")


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(InputError, match="qlora needs a GPU; choose lora16 or dora"):
        notebook.choices(method="qlora")
    with pytest.raises(InputError, match="unknown method"):
        notebook.choices(method="qlorra")


def test_a_run_is_made_once(tiny_model, capsys):
    chosen = notebook.choices(str(tiny_model), steps=4)
    first = notebook.train(chosen)
    assert first.status == "finished" and first.measures["steps"] == 4
    assert notebook.train(chosen) == first
    assert "holds this run, finished" in capsys.readouterr().out
    with pytest.raises(InputError, match="another method; choose another name"):
        notebook.train(notebook.choices(str(tiny_model), "dora", steps=4))


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_anew(tiny_model):
    chosen = notebook.choices(str(tiny_model), steps=4)
    whole = notebook.train(chosen)
    cut = record.read(chosen.out / "record.json")
    cut.status = "running"
    record.write(cut, chosen.out / "record.json")
    for name in ("checkpoint-4", "adapter"):
        shutil.rmtree(chosen.out / name)
    assert notebook.train(chosen).adapter["digest"] == whole.adapter["digest"]


def test_a_run_goes_on_from_the_hub_on_another_machine(tiny_model, tmp_path):
    code = (
        "from iris import notebook as n; n.train(n.choices({model!r}, name='night', keep='user/kept', steps={steps}))"
    )
    with HubServer() as server:
        for folder, steps, said in (("a", 4, ""), ("b", 6, "resuming from checkpoint-4")):
            (tmp_path / folder).mkdir()
            done = subprocess.run(
                [sys.executable, "-c", code.format(model=str(tiny_model), steps=steps)],
                cwd=tmp_path / folder,
                env=os.environ | server.env | {"CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            assert said in done.stdout and "not pushed" not in done.stdout
        assert server.repos["model", "user/kept"].private
    assert len(record.read(tmp_path / "b" / "runs" / "night" / "record.json").measures["losses"]) == 6


def test_show_passes_over_what_is_not_there(tmp_path, capsys):
    (tmp_path / "table.md").write_text("| a |")
    notebook.show("text", tmp_path / "table.md", tmp_path / "none.png")
    assert capsys.readouterr().out.count("Markdown") == 2
