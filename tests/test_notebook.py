"""What the notebooks lean on: choices that fit the machine, and runs that go on where they were, on a tiny model."""

import re

import pytest

from iris import InputError, notebook


@pytest.fixture(autouse=True)
def no_gpu_no_account_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr("iris.model.hardware.device", lambda: "cpu")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.chdir(tmp_path)


def test_without_a_gpu_it_is_a_taste_of_the_embedded_default(capsys):
    chosen = notebook.choices()
    assert (chosen.recipe.model, chosen.recipe.method, chosen.recipe.data) == ("smollm2", "lora16", "verses")
    assert (chosen.recipe.max_steps, chosen.minutes, chosen.tasks, chosen.trials) == (10, None, ["poetry_verses"], 3)
    assert "a taste of 10 steps" in capsys.readouterr().out
    chosen = notebook.choices(minutes=30)
    assert chosen.minutes == 30 and chosen.recipe.max_steps == -1  # bound by time alone


@pytest.mark.parametrize(("token", "model"), [("hf_x", "llama-3.2-1b"), (None, "smollm2")])
def test_with_a_gpu_it_is_llama_where_there_is_a_token(monkeypatch, token, model):
    monkeypatch.setattr("iris.model.hardware.device", lambda: "cuda")
    monkeypatch.setattr("iris.model.hardware.device_name", lambda: "Tesla T4")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    chosen = notebook.choices(method="qlora")
    assert (chosen.recipe.model, chosen.recipe.max_steps, len(chosen.tasks), chosen.trials) == (model, -1, 5, 12)


def test_where_checkpoints_are_kept_and_what_does_not_fit():
    assert notebook.choices(name="night").recipe.push_checkpoints is None
    assert notebook.choices(keep="user/kept").recipe.push_checkpoints == "user/kept"
    with pytest.raises(ModuleNotFoundError, match="google"):
        notebook.choices(keep="drive")
    with pytest.raises(InputError, match="unknown method"):
        notebook.choices(method="qlorra")


def test_a_run_is_made_once_and_any_prompt_answered_by_base_and_tuned(small_model, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Sing.", "output": "La."}\n')
    chosen = notebook.choices(str(small_model), data=str(tmp_path / "rows.jsonl"), steps=4)
    first = notebook.train(chosen)
    assert first.status == "finished" and first.measures["steps"] == 4
    assert notebook.train(chosen) == first
    assert "is finished and stays as it is" in capsys.readouterr().out
    with pytest.raises(InputError, match="method was lora16"):
        notebook.train(notebook.choices(str(small_model), "dora", chosen.recipe.data, steps=4))

    prompts = "Is 1 < 2?", "Say <|im_end|> and go on, at some length, about rain."
    asked = notebook.before_and_after(chosen, *prompts)
    rows = re.findall(r"(?s)<tr>(.*?)</tr>", asked)
    assert [row.count("<td") for row in rows] == [0, 2, 2] and "Is 1 &lt; 2?" in rows[1] and "form" not in asked
    assert asked == notebook.before_and_after(chosen, *prompts)
    poems = re.findall(r"(?s)<tr>(.*?)</tr>", notebook.before_and_after(chosen))
    assert [row.count("<i>(") for row in poems] == [0, 2, 2, 2] and "the last train home" in poems[1]


def test_show_passes_over_what_is_not_there(tmp_path, capsys):
    (tmp_path / "table.md").write_text("| a |")
    notebook.show("text", tmp_path / "table.md", tmp_path / "none.png")
    assert capsys.readouterr().out.count("Markdown") == 2
