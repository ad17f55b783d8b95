"""A stand-in for the Hugging Face Hub on loopback: what the real clients ask of it, and every way it can fail.

    with HubServer() as hub:
        hub.add_repo("model", "user/name", {"config.json": b"{}"})
        hub.fail("/resolve/", 503, times=2)
        ... clients with HF_ENDPOINT=hub.url and HF_HUB_DISABLE_XET=1 ...
        hub.count("/resolve/")

Large files (LFS) are served by redirect from another host name, as the Hub does, so that a token sent there is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_StandInTokenThatIsValid0000000000"  # of the user "user", who may read and write everything
LARGE = (".safetensors", ".gguf", ".pt")
API = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?$")
RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
BATCH = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$")
FAULTS: dict[str, tuple[int, dict[str, str]]] = {
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this repo is restricted."}),
    "missing": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "bad token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
}


@dataclass
class Repo:
    """One repository. `history` holds (commit, {path: bytes}, title), oldest first; `files` are those of main."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    hardware: str | None = None
    history: list[tuple[str, dict[str, bytes], str]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # tags

    @property
    def files(self) -> dict[str, bytes]:
        return self.history[-1][1]

    def commit(self, files: dict[str, bytes], title: str) -> str:
        sha = hashlib.sha1(f"{self.kind} {self.id} {len(self.history)} {title}".encode()).hexdigest()
        self.history.append((sha, dict(files), title))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit and the files of the branch main, a tag or a commit."""
        wanted = self.history[-1][0] if revision == "main" else self.refs.get(revision, revision)
        return next((sha, files) for sha, files, _ in self.history if sha == wanted)


@dataclass
class Fault:
    pattern: str
    status: int | str
    left: float
    headers: dict[str, str]
    seconds: float


class HubServer(ThreadingHTTPServer):
    """`requests` lists (method, path, status) of all that was asked; `repos` maps (kind, id) to a Repo; `leaks` counts
    requests that carried a token to the large-file host."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.forbids: dict[str, tuple[int, str]] = {}  # by kind: the answer where a repository is to be made
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.chunks: list[bytes] = []  # of large files that came by hf_xet
        self.requests: list[tuple[str, str, int]] = []
        self.leaks = 0
        self.lock = threading.RLock()
        self.stopping = threading.Event()  # also ends the waits of slow answers
        self._faults: list[Fault] = []
        self._chaos: tuple[float, random.Random] | None = None

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that goes away in the middle is no news."""

    def add_repo(self, kind: str, repo_id: str, files: dict[str, bytes], **options: bool) -> Repo:
        """A repository of the kind model, dataset or space with one commit; options: private, gated."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, **options)
        repo.commit(files, "initial commit")
        return repo

    def fail(self, pattern: str, status: int | str, times: float = 1, headers: Any = None, seconds: float = 0) -> None:
        """The next `times` requests whose "METHOD /path" has `pattern` (a regular expression) get an HTTP status, or
        one of gated, missing, bad token; "cut" (half the body), "drop" (no answer at all), "broken" (JSON
        cut in half) or "slow" (the true answer after `seconds`)."""
        self._faults.append(Fault(pattern, status, times, headers or {}, seconds))

    def chaos(self, probability: float, seed: int = 0) -> None:
        """From now on a request fails with `probability`, in one of the ways that pass by themselves."""
        self._chaos = (probability, random.Random(seed))

    def heal(self) -> None:
        """No more faults."""
        self._faults, self._chaos = [], None

    def count(self, pattern: str, status: int | None = None) -> int:
        """How many requests had `pattern` in "METHOD /path", and this status."""
        asked = [f"{method} {path}" for method, path, code in self.requests if status in (None, code)]
        return sum(bool(re.search(pattern, one)) for one in asked)

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self._faults:
                if fault.left > 0 and re.search(fault.pattern, request):
                    fault.left -= 1
                    return fault
            if self._chaos and self._chaos[1].random() < self._chaos[0]:
                kind = self._chaos[1].choice([412, 429, 500, 502, 503, "drop", "cut"])  # cut: done, and not heard of
                return Fault("", kind, 1, {"Retry-After": "0"}, 0)
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer
    cut = False

    def log_message(self, *_: object) -> None:
        pass

    def do_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.route = unquote(urlsplit(self.path).path)
        self.cut = False
        fault = self.server.fault_for(f"{self.command} {self.route}")
        if fault and fault.status == "slow":
            self.server.stopping.wait(fault.seconds)
        elif fault and fault.status == "drop":
            self.server.requests.append((self.command, self.route, 0))
            return self.hang_up()
        elif fault and fault.status == "broken":
            return self.send(200, b'{"_id": "1", "id": "user/na', {"Content-Type": "application/json"})
        elif fault and fault.status == "cut":
            self.cut = True
        elif fault:
            status, headers = FAULTS.get(str(fault.status), (fault.status, {}))
            return self.send(int(status), b"{}", {**headers, **fault.headers})
        with self.server.lock:
            self.answer()

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.server.requests.append((self.command, self.route, status))
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if self.cut else body)
        if self.cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.send(status, b"{}", {"X-Error-Message": message, "X-Error-Code": code})

    def answer(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub = self.server
        if self.route.startswith("/lfs/"):  # the large-file host, reached by a signed address
            hub.leaks += bool(token)
            return self.large_file(self.route.removeprefix("/lfs/"))
        if self.route.startswith(("/v1/", "/v2/")):
            return self.chunk_storage()
        if token not in ("", TOKEN):
            return self.refuse(401, "Invalid credentials in Authorization header")
        self.user = "user" if token else None
        if self.route == "/api/validate-yaml":
            return self.json({})
        if self.route == "/api/repos/create":
            return self.create(json.loads(self.body))
        if match := RESOLVE.match(self.route):
            if repo := self.repo(match[1] or "model", match[2]):
                self.resolve(repo, match[3], match[4])
        elif match := BATCH.match(self.route):
            if repo := self.repo(match[1] or "model", match[2], write=True):
                self.lfs_batch()
        elif match := API.match(self.route):
            kind, repo_id, verb, revision, rest = match.groups("")
            if repo := self.repo(kind, repo_id, write=self.command != "GET"):
                self.api(repo, verb, revision or "main", rest)
        else:
            self.refuse(404, "Not Found")

    def repo(self, kind: str, repo_id: str, write: bool = False) -> Repo | None:
        """The repository if it is there and this user may; else the refusal is sent."""
        repo = self.server.repos.get((kind, repo_id))
        if repo is None or ((repo.private or write) and not self.user):
            self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound")
        elif repo.gated and not self.route.startswith("/api/"):
            self.refuse(403 if self.user else 401, f"Access to {kind} {repo_id} is restricted.", "GatedRepo")
        else:
            return repo
        return None

    def create(self, asked: dict[str, Any]) -> None:
        kind, owner = asked.get("type", "model"), asked["organization"]
        if owner != self.user:
            return self.refuse(403, f"You don't have the rights to create a {kind} under {owner!r}")
        key = (kind, f"{owner}/{asked['name']}")
        url = f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{key[1]}"
        if key in self.server.repos:
            return self.json({"error": "You already created this repo", "url": url}, 409)
        if kind in self.server.forbids:
            return self.refuse(*self.server.forbids[kind])
        repo = self.server.add_repo(*key, {".gitattributes": b""}, private=asked.get("visibility") == "private")
        repo.sdk, repo.hardware = asked.get("sdk"), asked.get("hardware")
        self.json({"url": url, "name": key[1], "id": "1"})

    def api(self, repo: Repo, verb: str, revision: str, rest: str) -> None:
        sha, files = repo.at(revision)
        asked = json.loads(self.body) if verb in ("tag", "settings", "preupload") else {}
        match verb:
            case "" | "revision":
                siblings = [{"rfilename": path} for path in sorted(files)]
                told = {"id": repo.id, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}
                if repo.hardware:
                    told["runtime"] = {"stage": "RUNNING", "hardware": {"requested": repo.hardware}}
                self.json(told)
            case "tree":
                under = rest.strip("/") + "/" if rest else ""
                if under and not any(path.startswith(under) for path in files):
                    return self.refuse(404, f"{rest} does not exist on {revision}", "EntryNotFound")
                self.json([described(path, content) for path, content in files.items() if path.startswith(under)])
            case "preupload":
                self.json({"files": [upload_of(file["path"], files) for file in asked["files"]]})
            case "commit":
                self.commit(repo, files)
            case "xet-write-token":
                self.json({"casUrl": self.server.url, "accessToken": "of the storage", "exp": int(time.time()) + 3600})
            case "settings":
                repo.private = asked["visibility"] == "private"
                self.json({})
            case "tag" if asked["tag"] in repo.refs:
                self.refuse(409, "Tag reference exists already")
            case "tag":
                repo.refs[asked["tag"]] = sha
                self.json({})

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        sha, files = repo.at(revision)
        if path not in files:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        content = files[path]
        entry = described(path, content)
        known = {"X-Repo-Commit": sha}
        if "lfs" in entry:
            oid = entry["lfs"]["oid"]
            self.server.large[oid] = content
            known |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"'}
            return self.send(302, b"", known | {"Location": f"http://localhost:{self.server.server_port}/lfs/{oid}"})
        self.send(200, content, known | {"ETag": f'"{entry["oid"]}"'})

    def large_file(self, oid: str) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.server.large[oid] = self.body
            return self.send(200)
        self.send(200, self.server.large[oid], {"ETag": f'"{oid}"'})

    def chunk_storage(self) -> None:
        """What hf_xet asks for: chunks come in one block, each after its length."""
        if "/xorbs/" in self.route:
            at = 0
            while at < len(self.body):
                end = at + 8 + int.from_bytes(self.body[at + 1 : at + 4], "little")
                self.server.chunks.append(self.body[at + 8 : end])
                at = end
            return self.json({"was_inserted": True})
        self.json({"result": 1}) if self.route == "/v1/shards" else self.refuse(404, "Not Found")

    def assembled(self, oid: str, size: int) -> bytes:
        """The file with this SHA-256, of chunks that came."""
        chunks = self.server.chunks
        found = (b"".join(chunks[start:])[:size] for start in range(len(chunks)))
        return next(content for content in found if hashlib.sha256(content).hexdigest() == oid)

    def lfs_batch(self) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.large:
                href = f"http://localhost:{self.server.server_port}/lfs/{asked['oid']}"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        self.json({"transfer": "basic", "objects": objects})

    def commit(self, repo: Repo, files: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        title, after = "", dict(files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    after[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    stored = self.server.large.get(value["oid"])
                    after[value["path"]] = stored or self.assembled(value["oid"], value["size"])
                case "deletedFile":
                    del after[value["path"]]
        sha = repo.commit(after, title)
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo.id}/commit/{sha}"})


def described(path: str, content: bytes) -> dict[str, Any]:
    """One file as a tree listing shows it."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    if path.endswith(LARGE):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "sha256": oid, "size": len(content), "pointerSize": 0}
    return entry


def upload_of(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    """How a file is to be uploaded, and the digest of what is there in its place."""
    mode = "lfs" if path.endswith(LARGE) else "regular"
    known = described(path, files[path]) if path in files else {}
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known.get("lfs", known).get("oid")}


ALWAYS = math.inf  # for `times`


def sentence(error: BaseException) -> str:
    """The message, once it is seen to be one sentence without a token or a trace."""
    text = str(error)
    assert "\n" not in text and len(text) < 300 and "Traceback" not in text and "hf_Stand" not in text
    assert ";" in text or ":" in text or "," in text  # what happened, and what to do
    return text
