"""The Hub's jobs as huggingface_hub 1.33 asks for them, added to the stand-in: what is sent is run, here, in a folder.

with JobsServer(folder, path) as hub: ...          # `path` holds the folders of the commands that a job finds
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_server import Handler, HubServer

HARDWARE = [
    {
        "name": "a10g-small",
        "prettyName": "Nvidia A10G - small",
        "cpu": "4 vCPU",
        "ram": "15 GB",
        "accelerator": {"type": "gpu", "model": "A10G", "quantity": "1", "vram": "24 GB", "manufacturer": "Nvidia"},
        "unitCostMicroUSD": 16667,
        "unitCostUSD": 0.016667,
        "unitLabel": "minute",
    }
]
STARTING = 0.3  # seconds that a job waits for its machine


@dataclass
class Job:
    id: str
    spec: dict[str, Any]
    stage: str = "SCHEDULING"
    message: str | None = None
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def as_dict(self) -> dict[str, Any]:
        owner = {"id": "1", "name": "user", "type": "user"}
        told = {key: self.spec.get(key) for key in ("dockerImage", "command", "arguments", "environment", "flavor")}
        status = {"stage": self.stage, "message": self.message}
        return told | {"id": self.id, "createdAt": "2026-01-01T00:00:00.000Z", "owner": owner, "status": status}


class JobsServer(HubServer):
    """`jobs` holds what was sent, by id; with `hold` a job writes "holding" and never ends."""

    def __init__(self, folder: Path, path: list[Path]) -> None:
        super().__init__()
        self.RequestHandlerClass = JobsHandler
        self.folder, self.path = folder, [*path, Path("/usr/bin"), Path("/bin")]
        self.jobs: dict[str, Job] = {}
        self.hold = False

    def __exit__(self, *what: object) -> None:
        for job in self.jobs.values():
            if job.process:
                job.process.kill()
        super().__exit__(*what)

    def begin(self, spec: dict[str, Any]) -> Job:
        job = self.jobs[f"j{len(self.jobs)}"] = Job(f"j{len(self.jobs)}", spec)
        threading.Thread(target=self.work, args=(job,), daemon=True).start()
        return job

    def work(self, job: Job) -> None:
        self.stopping.wait(STARTING)
        folder = self.folder / job.id
        folder.mkdir(parents=True)
        command = ["bash", "-c", "echo holding; sleep 600"] if self.hold else job.spec["command"]
        machine = {"PATH": ":".join(map(str, self.path)), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        machine |= self.env | job.spec["environment"] | job.spec["secrets"]
        job.process = subprocess.Popen(
            command, cwd=folder, env=machine, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        job.stage = "RUNNING"
        assert job.process.stdout
        for line in job.process.stdout:
            job.lines.append(line)
        if job.stage == "RUNNING":
            failed = job.process.wait()
            job.message = f"exit code {failed}" if failed else None
            job.stage = "ERROR" if failed else "COMPLETED"


class JobsHandler(Handler):
    server: JobsServer

    def do_any(self) -> None:
        if re.search(r"/logs$", self.path):
            return self.logs(self.server.jobs[self.path.split("/")[-2]])
        return super().do_any()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def answer(self) -> None:
        self.user = self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if self.route == "/api/jobs/hardware":
            return self.json(HARDWARE)
        if not self.route.startswith("/api/jobs/"):
            return super().answer()
        owner, _, rest = self.route.removeprefix("/api/jobs/").partition("/")
        if self.user is None or owner != self.user:
            return self.refuse(403, f"You don't have the rights to run jobs as {owner}")
        number, _, verb = rest.partition("/")
        if not number and self.command == "POST":
            return self.json(self.server.begin(json.loads(self.body)).as_dict())
        job = self.server.jobs.get(number)
        if job is None:
            return self.refuse(404, "Job not found")
        if verb == "cancel":
            job.stage = "CANCELED"
            if job.process:
                job.process.kill()
        self.json(job.as_dict())

    def logs(self, job: Job) -> None:
        """Server-sent events until the job ends."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        sent = 0
        while True:
            ended = job.stage not in ("SCHEDULING", "RUNNING")
            for line in job.lines[sent:]:
                event = json.dumps({"data": line.rstrip("\n"), "timestamp": "2026-01-01T00:00:00Z"})
                self.wfile.write(f"data: {event}\n\n".encode())
                sent += 1
            self.wfile.flush()
            if ended or self.server.stopping.wait(0.05):
                break
        self.close_connection = True
