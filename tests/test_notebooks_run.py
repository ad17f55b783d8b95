"""The five notebooks, run for real from top to bottom without a GPU, and a kernel killed in the middle of 1_train.

Not part of the default run, as it takes minutes: `make notebooks`, or `pytest -m notebooks`.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from iris import checkpoints, record

pytestmark = pytest.mark.notebooks
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BUDGET = 12 * 60  # seconds, for all five together
seconds: dict[str, float] = {}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """The folder that all of them run in, as on one machine: the later ones use the run of the first."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(autouse=True)
def no_gpu_no_account(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("HF_TOKEN", raising=False)


def client(path: Path, folder: Path) -> NotebookClient:
    return NotebookClient(nbformat.read(path, as_version=4), timeout=BUDGET, resources={"metadata": {"path": folder}})


def outputs(notebook) -> str:
    """All that the notebook printed and showed, as text; pictures as <image>."""
    said = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            rich = data.get("text/markdown") or data.get("text/html") or ("<image>" if "image/png" in data else "")
            said.append(output.get("text") or rich)
    return "\n".join(said)


def config(run: Path) -> dict:
    """The adapter's settings; PEFT writes the names of its layers in no order, another one in every process."""
    read = json.loads((run / "adapter" / "adapter_config.json").read_text())
    return read | {"target_modules": sorted(read["target_modules"])}


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("1_train", ["what is learned is in bold", "\033[1m", "<image>", "<th>after</th>", "limerick"]),
        ("2_evaluate", ["holds this run, finished", "95% interval", "poetry_verses", "<image>"]),
        ("3_sweep", ["held-out loss", "| rank |", "<image>", "best of 3"]),
        ("4_speed", ["| lora16 |", "| dora |", "tokens/s on"]),
        ("5_publish", ["holds this run, finished", "holds what would be pushed", "/spaces/USER/Iris"]),
    ],
)
def test_it_runs_from_top_to_bottom(path, shown, workplace):
    file = next(notebook for notebook in NOTEBOOKS if notebook.stem == path)
    before = file.read_bytes()
    began = time.monotonic()
    said = outputs(client(file, workplace).execute())
    seconds[path] = time.monotonic() - began
    print(f"{path}: {seconds[path]:.0f} s")
    assert all(words in said for words in shown), said[-3000:]
    assert file.read_bytes() == before


def test_a_killed_kernel_loses_nothing(workplace, tmp_path):
    """SIGKILL in the middle of 1_train; run again, unchanged, it ends with the same weights, byte for byte."""
    whole, out = workplace / "runs" / "first", tmp_path / "runs" / "first"
    if not (whole / "adapter").exists():
        client(NOTEBOOKS[0], workplace).execute()
    running = client(NOTEBOOKS[0], tmp_path)

    def kill() -> None:
        end = time.monotonic() + BUDGET
        while not list(out.glob(f"checkpoint-*/{checkpoints.MANIFEST}")) and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(running.km.provisioner.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(DeadKernelError):
        running.execute()
    assert record.read(out / "record.json").status == "running" and not (out / "adapter").exists()
    said = outputs(client(NOTEBOOKS[0], tmp_path).execute())
    assert "resuming from checkpoint-" in said
    weights = Path("adapter") / "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()
    assert config(out) == config(whole)
    assert record.read(out / "record.json").measures["losses"] == record.read(whole / "record.json").measures["losses"]


def test_all_of_it_took_no_more_than_its_time():
    assert len(seconds) == len(NOTEBOOKS) and sum(seconds.values()) < BUDGET, seconds
