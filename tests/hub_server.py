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
import fnmatch
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
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_StandInTokenThatIsValid0000000000"  # of the user "user", who may read and write everything
LARGE = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.parquet", "*.gguf", "*.gz")
API = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?$")
RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/(?:resolve|raw)/([^/]+)/(.+)$")
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
    granted: set[str] = field(default_factory=set)  # tokens that may read it though it is gated

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
        self.tokens = {TOKEN: "user"}
        self.pro = False  # whether the user pays
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

    @property
    def env(self) -> dict[str, str]:
        """What a subprocess needs to take this for the Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}

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
    server: HubServer
    cut = False

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def do_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        self.route, self.query = unquote(split.path), parse_qs(split.query)
        self.raw_route = split.path
        self.cut = False
        fault = self.server.fault_for(f"{self.command} {self.route}")
        if fault and fault.status == "slow":
            self.server.stopping.wait(fault.seconds)
        elif fault and fault.status == "drop":
            self.server.requests.append((self.command, self.route, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        elif fault and fault.status == "broken":
            return self.send(200, b'{"_id": "1", "id": "user/na', {"Content-Type": "application/json"})
        elif fault and fault.status == "cut":
            self.cut = True
        elif fault:
            status, headers = FAULTS.get(str(fault.status), (fault.status, {}))
            return self.send(int(status), b"{}", {**headers, **fault.headers})
        with self.server.lock:
            self.answer()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

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
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, message: str, code: str = "", **headers: str) -> None:
        known = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers
        self.send(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **known})

    def answer(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub = self.server
        if self.route.startswith("/lfs/"):  # the large-file host, reached by a signed address
            hub.leaks += bool(token)
            return self.large_file(self.route.removeprefix("/lfs/"))
        if self.route.startswith(("/v1/", "/v2/")):
            return self.chunk_storage()
        if token and token not in hub.tokens:
            return self.refuse(401, "Invalid credentials in Authorization header")
        self.user = hub.tokens.get(token)
        self.token = token
        if self.route == "/api/validate-yaml":
            return self.validate(json.loads(self.body)["content"])
        if self.route == "/api/repos/create":
            return self.create(json.loads(self.body))
        if self.route == "/lfs-verify":
            known = hub.large.get(json.loads(self.body)["oid"])
            return self.json({}) if known is not None else self.refuse(404, "Object not found")
        if match := RESOLVE.match(self.route):
            if repo := self.repo(match[1] or "model", match[2]):
                self.resolve(repo, match[3], match[4])
        elif match := BATCH.match(self.route):
            if repo := self.repo(match[1] or "model", match[2], write=True):
                self.lfs_batch()
        elif match := API.match(self.raw_route):
            kind, repo_id, verb, revision, rest = (unquote(part) if part else "" for part in match.groups())
            if repo := self.repo(kind, repo_id, write=self.command != "GET"):
                self.api(repo, verb, revision or "main", rest)
        else:
            self.refuse(404, "Not Found")

    def validate(self, card: str) -> None:
        """The Hub's own check of a card's metadata, as far as data sets go."""
        names = yaml.safe_load(card.split("---\n")[1]).get("datasets") or []
        wrong = [name for name in names if not re.fullmatch(r"[\w-]+(/[\w.-]+)?", name)]
        told = [{"message": f'"datasets" with value "{name}" is not valid'} for name in wrong]
        self.json({"errors": told, "warnings": []}, 400 if wrong else 200)

    def repo(self, kind: str, repo_id: str, write: bool = False) -> Repo | None:
        """The repository if it is there and this user may; else the refusal is sent."""
        repo = self.server.repos.get((kind, repo_id))
        if repo is None or ((repo.private or write) and not self.user):
            self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound")
        elif repo.gated and self.token not in repo.granted and not self.route.startswith("/api/"):
            self.refuse(403 if self.user else 401, f"Access to {kind} {repo_id} is restricted.", "GatedRepo")
        else:
            return repo
        return None

    def create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or self.user
        if owner != self.user:
            return self.refuse(403, f"You don't have the rights to create a {asked.get('type')} under {owner!r}")
        key = (asked.get("type") or "model", f"{owner}/{asked['name']}")
        url = f"{self.server.url}/{'' if key[0] == 'model' else key[0] + 's/'}{key[1]}"
        if key in self.server.repos:
            return self.json({"error": "You already created this repo", "url": url}, 409)
        hardware = asked.get("hardware", "cpu-basic") if key[0] == "space" else None
        if hardware and asked.get("sdk") != "static" and not self.server.pro:
            if hardware != "zero-a10g":
                return self.refuse(402, "Creating a Gradio or Docker Space requires a PRO subscription")
            if sum(repo.hardware == hardware for repo in self.server.repos.values()) == 2:
                return self.refuse(403, "You have reached the limit of 2 ZeroGPU Spaces")
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = self.server.add_repo(*key, {".gitattributes": b""}, private=private)
        repo.sdk, repo.hardware = asked.get("sdk"), hardware
        self.json({"url": url, "name": key[1], "id": "1"})

    def api(self, repo: Repo, verb: str, revision: str, rest: str) -> None:
        if verb == "tag":
            name = json.loads(self.body)["tag"]
            if name in repo.refs:
                return self.refuse(409, "Tag reference exists already")
            repo.refs[name] = repo.at(revision)[0]
            return self.json({})
        if verb == "settings":
            repo.private = json.loads(self.body).get("visibility") == "private"
            return self.json({})
        sha, files = repo.at(revision)
        if verb in ("", "revision"):
            siblings = [{"rfilename": path} | self.sizes(path, files[path]) for path in sorted(files)]
            told = {"_id": "1", "id": repo.id, "sha": sha, "private": repo.private, "disabled": False, "tags": []}
            told |= {"gated": "auto" if repo.gated else False, "siblings": siblings, "cardData": {}, "sdk": repo.sdk}
            if repo.hardware:
                told["runtime"] = {"stage": "RUNNING", "hardware": {"requested": repo.hardware}}
            self.json(told)
        elif verb == "tree":
            under = rest.strip("/") + "/" if rest else ""
            if under and not any(path.startswith(under) for path in files):
                return self.refuse(404, f"{rest} does not exist on {revision}", "EntryNotFound")
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            self.json(tree(files, under, recursive))
        elif verb == "preupload":
            self.json({"files": [self.mode(file["path"], files) for file in json.loads(self.body)["files"]]})
        elif verb == "commit":
            self.commit(repo, files)
        elif verb == "xet-write-token":
            self.json({"casUrl": self.server.url, "accessToken": "of the storage", "exp": int(time.time()) + 3600})
        else:
            self.refuse(404, "Not Found")

    def sizes(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {key: value for key, value in described(path, content).items() if key in ("size", "lfs")}
        return entry | {"blobId": described(path, content)["oid"]} if "blobs" in self.query else {}

    @staticmethod
    def mode(path: str, files: dict[str, bytes]) -> dict[str, Any]:
        large = is_large(path)
        known = described(path, files[path]) if path in files else {}
        oid = known["lfs"]["oid"] if known and large else known.get("oid")
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        sha, files = repo.at(revision)
        if path not in files:
            return self.refuse(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
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

    def assemble(self, oid: str, size: int) -> bool:
        """Whether chunks that came make up the file with this SHA-256."""
        for start in range(len(self.server.chunks)):
            content = b"".join(self.server.chunks[start:])[:size]
            if hashlib.sha256(content).hexdigest() == oid:
                self.server.large[oid] = content
                return True
        return False

    def lfs_batch(self) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.large:
                host = f"http://localhost:{self.server.server_port}"
                upload, verify = {"href": f"{host}/lfs/{asked['oid']}"}, {"href": f"{self.server.url}/lfs-verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
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
                    if value["oid"] not in self.server.large and not self.assemble(value["oid"], value["size"]):
                        return self.refuse(400, "LFS pointer pointed to a file that does not exist")
                    after[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile" | "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    for path in [path for path in after if path == value["path"] or path.startswith(folder)]:
                        del after[path]
        sha = repo.commit(after, title)
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo.id}/commit/{sha}"})


def is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def described(path: str, content: bytes) -> dict[str, Any]:
    """One file as a tree listing shows it."""
    blob = content
    lfs = {}
    if is_large(path):
        oid = hashlib.sha256(content).hexdigest()
        blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        lfs = {"lfs": {"oid": oid, "sha256": oid, "size": len(content), "pointerSize": len(blob)}}
    oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
    return {"type": "file", "path": path, "oid": oid, "size": len(content), **lfs}


def tree(files: dict[str, bytes], under: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries below the folder `under` ("" or with a slash at its end)."""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        if not path.startswith(under):
            continue
        parts = path[len(under) :].split("/")
        for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
            folder = under + "/".join(parts[:depth])
            entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        if recursive or len(parts) == 1:
            entries[path] = described(path, content)
    return list(entries.values())


ALWAYS = math.inf  # for `times`


def sentence(error: BaseException) -> str:
    """The message, once it is seen to be one sentence without a token or a trace."""
    text = str(error)
    assert "\n" not in text and len(text) < 300 and "Traceback" not in text and "hf_Stand" not in text
    assert ";" in text or ":" in text or "," in text  # what happened, and what to do
    return text
