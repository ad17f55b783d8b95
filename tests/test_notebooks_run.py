"""The five notebooks, run for real from top to bottom without a GPU, and a kernel killed in the middle of 1_train.

Not part of the default run, as it takes minutes: `make notebooks`, or `pytest -m notebooks`.
"""

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

from iris import record
from iris.train import checkpoints

BUDGET = 12 * 60  # seconds on two cores, for all five together
pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(2 * BUDGET)]
NOTEBOOKS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))}
# what others wait for, then the longest first
ORDER = ("1_train", "3_sweep", "killed", "2_evaluate", "4_speed", "5_publish")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that all five ran in, as on one machine (the later ones use the run of the first); the folder where
    1_train was killed and run again; what each one showed; the seconds of all together. Two cores: two notebooks at a
    time, of one thread each, whose sums repeat."""
    folder, other = (tmp_path_factory.mktemp(name) for name in ("notebooks", "killed"))
    shown, trained = {}, threading.Event()

    def run(name: str) -> None:
        began = time.monotonic()
        if name in ("2_evaluate", "5_publish"):
            trained.wait(BUDGET)
        try:
            shown[name] = kill_and_run_again(other) if name == "killed" else outputs(client(name, folder).execute())
        except Exception as error:
            shown[name] = f"{type(error).__name__}: {error}"
        if name == "1_train":
            trained.set()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("HF_TOKEN", raising=False)
        began = time.monotonic()
        list(pool.map(run, ORDER))
    return folder, other, shown, time.monotonic() - began


def kill_and_run_again(folder: Path) -> str:
    """SIGKILL 1_train after its first checkpoint and run it again, unchanged; what the second run showed."""
    out, running = folder / "runs" / "first", client("1_train", folder)

    def kill() -> None:
        end = time.monotonic() + BUDGET
        while not list(out.glob(f"checkpoint-*/{checkpoints.MANIFEST}")) and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(running.km.provisioner.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(DeadKernelError):
        running.execute()
    assert record.read(out / "record.json").status == "running" and not (out / "adapter").exists()
    return outputs(client("1_train", folder).execute())


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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("1_train", ["what is learned is in bold", "\033[1m", "<image>", "<th>after</th>", "limerick"]),
        ("2_evaluate", ["is finished and stays as it is", "95% interval", "poetry_verses", "<image>"]),
        ("3_sweep", ["held-out loss", "| rank |", "<image>", "best of 3"]),
        ("4_speed", ["| lora16 |", "| dora |", "tokens/s on"]),
        ("5_publish", ["is finished and stays as it is", "holds what would be pushed"]),
    ],
)
def test_it_runs_from_top_to_bottom(name, shown, ran):
    said = ran[2][name]
    assert all(words in said for words in shown), said[-3000:]


def test_a_killed_kernel_loses_nothing(ran):
    """Killed in the middle of 1_train and run again, it ends with the same weights, byte for byte."""
    said, (whole, out) = ran[2]["killed"], (folder / "runs" / "first" for folder in ran[:2])
    assert "resuming from checkpoint-" in said, said[-3000:]
    weights = Path("adapter") / "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()
    assert record.read(out / "record.json").measures["losses"] == record.read(whole / "record.json").measures["losses"]


def test_all_of_it_took_no_more_than_its_time(ran):
    print(f"all together: {ran[3]:.0f} s")
    assert ran[2].keys() == {*NOTEBOOKS, "killed"} and ran[3] < BUDGET
