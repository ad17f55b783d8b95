"""The five notebooks, run for real from top to bottom without a GPU, and a kernel killed in the middle of 1_train.

Not part of the default run, as it takes minutes: `make notebooks`, or `pytest -m notebooks`.
"""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from iris import checkpoints, record

BUDGET = 12 * 60  # seconds on two cores, for all five together
pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(2 * BUDGET)]
NOTEBOOKS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))}
CHAINS = (("1_train", "2_evaluate"), ("4_speed", "3_sweep", "5_publish"))  # of about the same length


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that all of them ran in, as on one machine (the later ones use the run of the first), what each one
    showed, and the seconds of all together. Two cores: two at a time, of one thread each, with sums that repeat."""
    folder, shown, trained = tmp_path_factory.mktemp("notebooks"), {}, threading.Event()

    def run(chain: tuple[str, ...]) -> None:
        for name in chain:
            if name == "5_publish":
                trained.wait(BUDGET)
            began = time.monotonic()
            try:
                shown[name] = outputs(client(name, folder).execute())
            except Exception as error:
                shown[name] = str(error)
            if name == "1_train":
                trained.set()
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(CHAINS)) as pool:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("HF_TOKEN", raising=False)
        began = time.monotonic()
        list(pool.map(run, CHAINS))
        yield folder, shown, time.monotonic() - began


def client(name: str, folder: Path) -> NotebookClient:
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    return NotebookClient(notebook, timeout=BUDGET, resources={"metadata": {"path": folder}})


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
    ("name", "shown"),
    [
        ("1_train", ["what is learned is in bold", "\033[1m", "<image>", "<th>after</th>", "limerick"]),
        ("2_evaluate", ["holds this run, finished", "95% interval", "poetry_verses", "<image>"]),
        ("3_sweep", ["held-out loss", "| rank |", "<image>", "best of 3"]),
        ("4_speed", ["| lora16 |", "| dora |", "tokens/s on"]),
        ("5_publish", ["holds this run, finished", "holds what would be pushed", "/spaces/USER/Iris"]),
    ],
)
def test_it_runs_from_top_to_bottom(name, shown, ran):
    said = ran[1][name]
    assert all(words in said for words in shown), said[-3000:]


def test_all_of_it_took_no_more_than_its_time(ran):
    _, shown, seconds = ran
    print(f"all five: {seconds:.0f} s")
    assert shown.keys() == NOTEBOOKS.keys() and seconds < BUDGET


def test_a_killed_kernel_loses_nothing(ran, tmp_path):
    """SIGKILL in the middle of 1_train; run again, unchanged, it ends with the same weights, byte for byte."""
    whole, out = ran[0] / "runs" / "first", tmp_path / "runs" / "first"
    running = client("1_train", tmp_path)

    def kill() -> None:
        end = time.monotonic() + BUDGET
        while not list(out.glob(f"checkpoint-*/{checkpoints.MANIFEST}")) and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(running.km.provisioner.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(DeadKernelError):
        running.execute()
    assert record.read(out / "record.json").status == "running" and not (out / "adapter").exists()
    said = outputs(client("1_train", tmp_path).execute())
    assert "resuming from checkpoint-" in said
    weights = Path("adapter") / "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()
    assert config(out) == config(whole)
    assert record.read(out / "record.json").measures["losses"] == record.read(whole / "record.json").measures["losses"]
