"""Checkpoints kept on the Hub, so that a lost machine loses no training.

Each upload is a process of its own (`python -m iris.push`): a slow or hanging Hub cannot hold up the training or its
end, and an upload outlives a training that is killed. A repository holds, for every run, RUN/record.json and the last
two RUN/checkpoint-N; each upload is one commit, so that what is there is whole.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import checkpoints
from .errors import InputError, RunError
from .hub import TIMEOUT, patiently

STAGE = ".push"  # where a checkpoint waits for its upload, out of the reach of save_total_limit
LONGEST_UPLOAD = 1800  # seconds after which an upload is given up
LONGEST_GREETING = 60  # seconds for making the repository before the training begins


class CheckpointPusher:
    """Uploads checkpoints of the run in `out` to the private model repository `repo_id`, one at a time; a newer one
    takes the place of one that still waits. InputError if the name or the token is refused; whatever fails later is
    told in one sentence, and training goes on."""

    def __init__(self, repo_id: str, out: Path) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
            raise InputError(f"push_checkpoints={repo_id} is not of the form USER/NAME")
        self.repo_id, self.out = repo_id, out
        self.process: subprocess.Popen[str] | None = None
        self.sending: Path | None = None
        self.waiting: Path | None = None
        shutil.rmtree(out / STAGE, ignore_errors=True)  # left by a run that was killed
        greeting = _start(repo_id, LONGEST_GREETING)
        told = _last_line(greeting)
        if greeting.returncode == 2:
            raise InputError(told)
        if greeting.returncode:
            print(f"{told}; training begins all the same, and every checkpoint tries again", flush=True)

    def push(self, checkpoint: Path) -> None:
        """Begin to upload a sealed checkpoint, or let it wait for the one under way. Returns at once."""
        staged = self.out / STAGE / checkpoint.name
        if staged in (self.sending, self.waiting):
            return
        try:
            shutil.copytree(checkpoint, staged, copy_function=_link)
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            print(f"\n{checkpoint.name} was not pushed to {self.repo_id} ({error}); training goes on", flush=True)
            return
        if self.waiting:
            shutil.rmtree(self.waiting, ignore_errors=True)
        self.waiting = staged
        self.poll()

    def poll(self) -> None:
        """Tell how an upload ended, and begin the next. Costs nothing while one is under way."""
        if self.process and self.process.poll() is not None:
            told = _last_line(self.process)
            if self.process.returncode:
                self._lost(told)
            self._forget()
        if self.process is None and self.waiting:
            self.sending, self.waiting = self.waiting, None
            try:
                record = self.out / "record.json"
                self.process = _start(self.repo_id, LONGEST_UPLOAD, self.out.name, self.sending, record)
            except OSError as error:  # no memory for a process, say
                self._lost(str(error))
                self._forget()

    def wait(self, seconds: float = 600) -> None:
        """Let the last uploads end, for so many seconds at most."""
        end = time.monotonic() + seconds
        try:
            self.poll()
            while self.process:
                try:
                    self.process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self._lost(f"the upload took more than {seconds:.0f} s")
                    self.waiting = None
                    break
                self.poll()
        finally:
            if self.process:
                self.process.kill()
                self.process.wait()
            self._forget()
            shutil.rmtree(self.out / STAGE, ignore_errors=True)

    def _lost(self, why: str) -> None:
        name = self.sending.name if self.sending else ""
        print(f"\n{name} was not pushed to {self.repo_id}, it is kept in {self.out} only ({why})", flush=True)

    def _forget(self) -> None:
        if self.sending:
            shutil.rmtree(self.sending, ignore_errors=True)
        self.process = self.sending = None


def fetch_last(repo_id: str, out: Path) -> Path | None:
    """Bring the newest whole checkpoint of the run named as `out` from the Hub into `out`, with the run's record;
    None if the repository holds none. InputError or RunError if the Hub says no."""
    from huggingface_hub import HfApi, snapshot_download

    what = f"the checkpoint repository {repo_id}"
    info = patiently(what, lambda: HfApi().model_info(repo_id, timeout=TIMEOUT))
    pulled = out / ".pull"
    for step in reversed(_steps(info, out.name)):
        name = f"checkpoint-{step}"
        wanted = [f"{out.name}/{name}/*", f"{out.name}/record.json"]
        download = functools.partial(snapshot_download, allow_patterns=wanted, local_dir=pulled)
        patiently(what, functools.partial(download, repo_id, revision=info.sha))
        fetched = pulled / out.name
        if checkpoints.is_whole(fetched / name):
            shutil.rmtree(out / name, ignore_errors=True)
            os.replace(fetched / name, out / name)
            os.replace(fetched / "record.json", out / "record.json")  # last: a run without it is fetched again
            shutil.rmtree(pulled)
            print(f"{name} was fetched from {repo_id}", flush=True)
            return out / name
        print(f"{name} in {repo_id} is not whole; trying the one before", flush=True)
        shutil.rmtree(fetched / name, ignore_errors=True)
    shutil.rmtree(pulled, ignore_errors=True)
    return None


def upload(repo_id: str, run: str, checkpoint: Path, record: Path) -> None:
    """Add a checkpoint and the record to the repository in one commit; of the run's earlier ones the last remains."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    step = int(checkpoint.name.rpartition("-")[2])
    there = _steps(api.model_info(repo_id, timeout=TIMEOUT), run)
    kept = {step, *[earlier for earlier in there if earlier < step][-1:]}
    # the record changes while the training goes on, so its bytes are taken once
    adds = [CommitOperationAdd(f"{run}/record.json", record.read_bytes())]
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        adds.append(CommitOperationAdd(f"{run}/{checkpoint.name}/{path.relative_to(checkpoint).as_posix()}", path))
    deletes = [CommitOperationDelete(f"{run}/checkpoint-{old}/", is_folder=True) for old in there if old not in kept]
    api.create_commit(repo_id, [*deletes, *adds], commit_message=f"{run}: {checkpoint.name}")


def _steps(info: object, run: str) -> list[int]:
    """The steps of the run's checkpoints in a repository, in order."""
    names = [entry.rfilename for entry in getattr(info, "siblings", None) or []]
    found = (re.match(rf"{re.escape(run)}/checkpoint-(\d+)/", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def _link(source: str, target: str) -> None:
    """A second name for the same file where the disk knows such (a mounted Drive does not), else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _start(repo_id: str, seconds: int, *upload_arguments: str | Path) -> subprocess.Popen[str]:
    from huggingface_hub import get_token

    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    token = {"HF_TOKEN": token} if (token := get_token()) else {}  # a notebook may hold it in this process only
    return subprocess.Popen(
        [sys.executable, "-m", "iris.push", repo_id, str(seconds), *map(str, upload_arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | quiet | token,
        start_new_session=True,  # Ctrl-C stops the training, not the upload of what it has made
    )


def _last_line(process: subprocess.Popen[str]) -> str:
    lines = process.communicate()[0].strip().splitlines()
    if process.returncode == -signal.SIGALRM:
        return "the Hub took too long to answer"
    return lines[-1] if lines else f"the upload ended with {process.returncode}"


def main(repo_id: str, seconds: str, *upload_arguments: str) -> int:
    """Make the repository where it is not there, and upload a checkpoint if one is given, within so many seconds."""
    from huggingface_hub import HfApi

    signal.alarm(int(seconds))
    os.nice(10)

    def work() -> None:
        HfApi().create_repo(repo_id, private=True, exist_ok=True)
        if upload_arguments:
            run, checkpoint, record = upload_arguments
            upload(repo_id, run, Path(checkpoint), Path(record))

    try:
        patiently(f"the checkpoint repository {repo_id}", work)
        return 0
    except (InputError, RunError) as error:
        print(error)
        return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
