"""`iris train` on a rented machine: Hugging Face Jobs runs the same command, the Hub carries everything there and back.

    iris train --on hf-jobs --flavor a10g-small --repo USER/NAME --data poems.jsonl --out runs/poems
    iris train --on hf-jobs --flavor a10g-small --repo USER/NAME ... --dry-run        # prints the job, sends nothing

The private model repository USER/NAME gets this very package and a local data file (job/RUN/), then the checkpoints
while the job runs (RUN/checkpoint-N, see push.py; `--resume` goes on from them), at its end the adapter, the record and
the picture, which come back into --out. The token travels as a secret of the job: in no command, file or print.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tarfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, RunError
from .hub import patiently
from .recipe import Recipe, one_of

if TYPE_CHECKING:
    import argparse

    from huggingface_hub import HfApi, JobInfo

IMAGE = "python:3.11"  # CUDA comes with torch's own packages, the driver with the machine
PRICES = "https://huggingface.co/docs/hub/jobs-pricing"
QUIETLY = ("install", "--quiet", "--root-user-action=ignore")
POLL = 2.0  # seconds between two looks at a job that does not speak
RESULTS = ("adapter/*", "record.json", "loss.png")


def train(recipe: Recipe, args: argparse.Namespace) -> None:
    """Send the training to Hugging Face Jobs, follow it and fetch what it made. InputError for what cannot travel and
    for a Hub that refuses, RunError if the job fails or is cancelled."""
    from huggingface_hub import HfApi, get_token

    check(recipe, args)
    spec = job(recipe, args)
    api = HfApi()
    print(cost(api, args.flavor, args.timeout), flush=True)
    if args.dry_run:
        print(json.dumps(spec, indent=1))
        return
    token = get_token()
    if token is None:
        raise InputError("a job needs your token; log in with `hf auth login`")
    secrets = {name: os.environ.get(name, "") for name in spec["secrets"]} | {"HF_TOKEN": token}
    send(api, args.repo, args.out.name, Path(recipe.data))
    begun = patiently("Hugging Face Jobs", lambda: api.run_job(**spec | {"secrets": secrets}), waits=())
    print(f"job {begun.id} is sent: {begun.url}", flush=True)
    try:
        ended = follow(api, begun)
    except KeyboardInterrupt:
        if not wanted(f"\ncancel job {begun.id}? It costs until it ends. [y/N] "):
            print(f"it goes on: {begun.url}; the checkpoints are in {args.repo}", flush=True)
            return
        patiently("the job", lambda: api.cancel_job(job_id=begun.id, namespace=spec["namespace"]))
        raise RunError(f"job {begun.id} is cancelled; its checkpoints are in {args.repo}") from None
    if ended.status.stage != "COMPLETED":
        why = f" ({ended.status.message})" if ended.status.message else ""
        raise RunError(
            f"job {begun.id} ended as {ended.status.stage}{why}; its checkpoints are in {args.repo}, "
            "the same command with --resume goes on"
        )
    fetch(args.repo, args.out)


def check(recipe: Recipe, args: argparse.Namespace) -> None:
    """InputError for what a job cannot be, or be given."""
    from huggingface_hub import JobHardware

    if not args.flavor:
        raise InputError(f"--on hf-jobs needs --flavor, such as a10g-small; what each costs: {PRICES}")
    one_of(args.flavor, [flavor.value for flavor in JobHardware], "flavor")
    if not args.repo or args.repo.count("/") != 1:
        raise InputError("--on hf-jobs needs --repo USER/NAME, the private repository for the data and the results")
    if args.timeout <= 0:
        raise InputError(f"--timeout must be above zero minutes, not {args.timeout}")
    if args.data_dir:
        raise InputError("--data-dir does not travel to a job; leave it out")
    if Path(recipe.model).is_dir():
        raise InputError(f"the folder {recipe.model} does not travel to a job; put the model on the Hub and name it")


def job(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of huggingface_hub's run_job; `secrets` holds the names only."""
    run, brought = args.out.name, f"job/{args.out.name}"
    words = ["train", "--model", recipe.model, "--method", recipe.method, "--out", run]
    words += ["--data", f"{brought}/{Path(recipe.data).name}" if Path(recipe.data).is_file() else recipe.data]
    for name in ("max_steps", "minutes", "seed"):
        if (value := getattr(args, name)) is not None:
            words += ["--" + name.replace("_", "-"), str(value)]
    words += ["--resume"] * args.resume + ["--strict"] * args.strict
    words += ["--gpus", str(args.gpus)] * (args.gpus != 1)
    said = ("model=", "method=", "data=", "push_checkpoints=")
    settings = [setting for setting in args.set or [] if not setting.startswith(said)]
    words += [word for setting in [*settings, f"push_checkpoints={args.repo}"] for word in ("--set", setting)]
    download = f"snapshot_download({args.repo!r}, allow_patterns={brought + '/*'!r}, local_dir='.')"
    steps = [
        ["pip", *QUIETLY, f"huggingface_hub=={metadata.version('huggingface_hub')}"],
        ["python", "-c", f"from huggingface_hub import snapshot_download; {download}"],
        ["tar", "-xzf", f"{brought}/iris.tar.gz"],
        ["pip", *QUIETLY, *requirements(recipe)],
        ["python", "-m", "iris", *words],
        ["python", "-m", "iris.jobs", args.repo, run],
    ]
    secrets = ["HF_TOKEN", *(["WANDB_API_KEY"] if recipe.report_to == "wandb" else [])]
    return {
        "image": IMAGE,
        "command": ["bash", "-ec", "\n".join(map(shlex.join, steps))],
        "env": {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        "secrets": secrets,
        "flavor": args.flavor,
        "timeout": int(args.timeout * 60),
        "name": re.sub(r"[^\w.-]", "-", f"iris-{run}"),
        "namespace": args.repo.split("/")[0],
    }


def requirements(recipe: Recipe) -> list[str]:
    """What training needs, as pinned where this command runs."""
    extras, needed = {"train"} | ({"gpu"} if recipe.engine == "unsloth" else set()), []
    for line in metadata.requires("iris-poetry-lab") or []:
        package, _, marker = line.partition(";")
        extra = marker.partition("extra ==")[2].strip(" \"'")
        if not marker or extra in extras or (extra == "gpu" and package.startswith("bitsandbytes")):
            needed.append(package.strip())
    return needed


def cost(api: HfApi, flavor: str, minutes: float) -> str:
    """What the job may cost at most, as the Hub lists its prices; where to look if it does not say."""
    try:
        listed = {one.name: one for one in patiently("the list of prices", api.list_jobs_hardware, waits=())}
        price = listed[flavor].unit_cost_usd * minutes / {"minute": 1, "hour": 60}[listed[flavor].unit_label]
    except (InputError, RunError, KeyError):
        return f"{flavor}, ended after {minutes:g} minutes at the latest; the Hub lists no price for it, see {PRICES}"
    unit = f"${listed[flavor].unit_cost_usd:.4f} a {listed[flavor].unit_label}"
    return f"{flavor}: {unit}, ended after {minutes:g} minutes at the latest: ${price:.2f} at most"


def send(api: HfApi, repo: str, run: str, data: Path) -> None:
    """Put this package, and `data` if it is a file, into the private repository. InputError if it is not private."""
    from huggingface_hub import CommitOperationAdd

    package, buffer = Path(__file__).parent, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.add(path, Path("iris") / path.relative_to(package))
    files = [CommitOperationAdd(f"job/{run}/iris.tar.gz", buffer.getvalue())]
    if data.is_file():
        files.append(CommitOperationAdd(f"job/{run}/{data.name}", data))
    patiently(f"the repository {repo}", lambda: api.create_repo(repo, private=True, exist_ok=True))
    if not patiently(f"the repository {repo}", lambda: api.model_info(repo)).private:
        raise InputError(f"{repo} is public, and your data would be so, too; choose another --repo")
    patiently(f"the repository {repo}", lambda: api.create_commit(repo, files, commit_message=f"{run}: to be run"))


def follow(api: HfApi, begun: JobInfo) -> JobInfo:
    """Print the job's log as it comes; returns what became of the job when it has ended. Ctrl-C raises."""
    from huggingface_hub import JobStage

    ended = [JobStage.COMPLETED, JobStage.CANCELED, JobStage.ERROR, JobStage.DELETED]
    it: dict[str, Any] = {"job_id": begun.id, "namespace": begun.owner.name}
    stopped = []

    def on_interrupt(*_: Any) -> None:
        stopped.append(True)
        raise KeyboardInterrupt

    def look(*stages: JobStage) -> JobInfo:
        while (now := patiently("the job", lambda: api.inspect_job(**it))).status.stage in stages:
            time.sleep(POLL)
        return now

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        look(JobStage.SCHEDULING)
        for line in api.fetch_job_logs(**it, follow=True):
            print(line, flush=True)
        if stopped:  # fetch_job_logs takes Ctrl-C for the end of the log
            raise KeyboardInterrupt
        return look(*(stage for stage in JobStage if stage not in ended))
    finally:
        signal.signal(signal.SIGINT, before)


def wanted(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


def fetch(repo: str, out: Path) -> None:
    """Bring adapter, record and picture of the run into `out`."""
    from huggingface_hub import snapshot_download

    patterns = [f"{out.name}/{pattern}" for pattern in RESULTS]
    there = Path(patiently(f"the repository {repo}", lambda: snapshot_download(repo, allow_patterns=patterns)))
    shutil.copytree(there / out.name, out, dirs_exist_ok=True)
    print(f"adapter in {out / 'adapter'}", flush=True)


def main() -> None:
    """On the rented machine, at the end: put what was made into the repository."""
    from huggingface_hub import HfApi

    repo, run = sys.argv[1:]
    upload: dict[str, Any] = {"folder_path": run, "path_in_repo": run, "allow_patterns": list(RESULTS)}
    patiently(
        f"the repository {repo}", lambda: HfApi().upload_folder(repo_id=repo, commit_message=f"{run}: done", **upload)
    )


if __name__ == "__main__":
    main()
