"""A Hugging Face Hub in this process: as much of its HTTP protocol as the real huggingface_hub client needs for models, datasets, Spaces and jobs.

Point a client at it with HF_ENDPOINT and HF_HUB_DISABLE_XET=1. Repositories are kept in memory, where tests look into them and
put faults in the way. Large files are stored under another origin (`localhost`), as the real Hub does.
"""

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import yaml
from huggingface_hub import SpaceHardware

from tests import space_card

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
"""The one file that a new repository holds."""


@dataclass(frozen=True)
class User:
    """Whom a token belongs to. A token that may write may write to repositories of this name, and read the private ones."""

    name: str
    may_write: bool = True
    may_read: bool = True
    """Private repositories of this name; a fine-grained token names those that it may."""
    id: str = "5f0c746619cb630495b814fd"


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one moment."""

    title: str
    files: dict[str, bytes]

    @functools.cached_property
    def oid(self) -> str:
        return hashlib.sha1(repr((self.title, sorted(self.files.items()))).encode()).hexdigest()


@dataclass
class Repository:
    """A repository of a model, or, named `datasets/OWNER/NAME` or `spaces/OWNER/NAME`, of a dataset or a Space."""

    private: bool
    hardware: str | None = None
    """Of a Space, what was asked for."""
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {".gitattributes": GITATTRIBUTES})])
    """Of the branch main, oldest first."""
    pull_requests: list[Commit] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """What the branch main holds."""
        return self.commits[-1].files

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a pull request's ref or an oid names."""
        named = {f"refs/pr/{number}": commit for number, commit in enumerate(self.pull_requests, 1)}
        named |= {commit.oid: commit for commit in [*self.commits, *self.pull_requests]}
        return (named | {"main": self.commits[-1]}).get(revision)


@dataclass(frozen=True)
class Request:
    """What a client sent. Names of headers are in lower case; `path` is as it was sent, without its query."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What the client gets."""

    status: int
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


JOBS_HARDWARE: list[dict[str, Any]] = [
    {"name": name, "prettyName": name, "cpu": "2 vCPU", "ram": "16 GB", "accelerator": gpu}
    | {"unitCostMicroUSD": cost, "unitCostUSD": cost / 1e6, "unitLabel": "minute"}
    for name, cost, gpu in (
        ("cpu-basic", 167, None),
        ("t4-small", 6_667, {"type": "gpu", "model": "T4", "quantity": "1", "vram": "16 GB", "manufacturer": "Nvidia"}),
        ("l4x4", 63_333, {"type": "gpu", "model": "L4", "quantity": "4", "vram": "96 GB", "manufacturer": "Nvidia"}),
    )
]
"""In the form in which the Hub lists it."""


class Job:
    """A job, which really runs here: what it would have `uv` run, with the interpreter of the tests, in an empty folder.

    Without an environment it does nothing but wait, and a test plays its part.
    """

    def __init__(self, number: str, owner: str, spec: dict[str, Any], environment: dict[str, str] | None):
        self.id, self.owner, self.spec = number, owner, spec
        self._ended: tuple[str, str] | None = None
        self._began = time.monotonic()
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, *spec["command"][spec["command"].index("python") + 1 :]] if environment else ["sleep", "600"]
        with open(f"{self._folder.name}/log", "wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder.name, stdout=log, stderr=log, start_new_session=True, stdin=subprocess.DEVNULL,
                env=(environment or {}) | {"TMPDIR": self._folder.name} | spec.get("environment", {}) | spec.get("secrets", {}),
            )  # fmt: skip

    def stage(self) -> tuple[str, str | None]:
        """(stage, message), as the Hub would say."""
        if self._ended is None and (status := self._process.poll()) is not None:
            self._ended = ("ERROR", f"Job failed with exit code: {status}") if status else ("COMPLETED", "")
        if self._ended is None and time.monotonic() - self._began > self.spec.get("timeoutSeconds", 1_800):
            self.end("ERROR", "Job timeout")
        return self._ended or ("RUNNING", None)

    def end(self, stage: str, message: str) -> None:
        """End it by force."""
        self._ended = self._ended or (stage, message)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log(self) -> list[str]:
        return open(f"{self._folder.name}/log", errors="replace").read().splitlines()

    def as_json(self) -> dict[str, Any]:
        stage, message = self.stage()
        told = {name: self.spec.get(name) for name in ("dockerImage", "command", "arguments", "environment", "flavor", "labels")}
        who = {"id": self.owner, "name": self.owner, "type": "user"}
        return told | {"id": self.id, "status": {"stage": stage, "message": message}, "owner": who}


class _Refusal(Exception):
    """Ends the handling of a request with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = _json({"error": message} | more, status, headers)


@dataclass
class _Fault:
    path_part: str
    times: int
    answer: Answer | None
    """None drops the connection."""


class HubServer:
    """The server; use it in a `with` statement. `repositories` and `requests` may be looked at and changed at any time."""

    def __init__(self, tokens: dict[str, User]):
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        """All that came, oldest first, those that were made to fail too."""
        self.jobs: dict[str, Job] = {}
        self.job_environment: dict[str, str] | None = None
        """What jobs inherit, besides the address of this server; None where they are not to run."""
        self._stored: dict[str, bytes] = {}  # large files by their SHA-256
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end_jobs()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage_url(self) -> str:
        """Where large files are; another origin, so that a client must not send its token there."""
        return f"http://localhost:{self._server.server_port}"

    def add_repository(self, repo: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """A repository that somebody made and filled before."""
        made = self.repositories[repo] = Repository(private)
        made.commits.append(Commit("made by hand", made.files | files))
        return made

    def fail_next(self, path_part: str, status: int, times: int = 1, message: str = "made to fail", code: str | None = None) -> None:
        """Answer the next requests whose path contains `path_part` with `status`; they change nothing."""
        self._faults.append(_Fault(path_part, times, _Refusal(status, message, code).answer))

    def drop_next(self, path_part: str, times: int = 1) -> None:
        """Drop the connection in the middle of the answer to the next requests whose path contains `path_part`; they change nothing."""
        self._faults.append(_Fault(path_part, times, None))

    def end_jobs(self) -> None:
        for job in self.jobs.values():
            job.end("CANCELED", "the tests are over")

    def forget(self) -> None:
        """Be as new: no repositories, jobs, requests or faults. Tokens stay."""
        self.end_jobs()
        with self._lock:
            for kept in (self.repositories, self.jobs, self.requests, self._stored, self._faults):
                kept.clear()

    def answer(self, request: Request) -> Answer | None:
        """Handle a request; None drops the connection."""
        with self._lock:  # one at a time: the client uploads in several threads
            self.requests.append(request)
            fault = next((fault for fault in self._faults if fault.times and fault.path_part in request.path), None)
            if fault:
                fault.times -= 1
                return fault.answer
            try:
                return self._route(request)
            except _Refusal as refusal:
                return refusal.answer

    def _route(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and wanted == method:
                return getattr(self, name)(request, *(unquote(part) if part else part for part in match.groups()))
        raise _Refusal(404, f"this server does not know {request.method} {request.path}")

    # Who may do what

    def _user(self, request: Request) -> User | None:
        if request.token and request.token not in self.tokens:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[request.token] if request.token else None

    def _writer(self, request: Request) -> User:
        user = self._user(request)
        if user is None:
            raise _Refusal(401, "Invalid username or password.")
        if not user.may_write:
            raise _Refusal(403, "Your token has no write access")
        return user

    def _own(self, request: Request, owner: str) -> None:
        if self._writer(request).name != owner:
            raise _Refusal(403, f'You don\'t have the rights to create or change a model under the namespace "{owner}"')

    def _readable(self, request: Request, repo: str) -> Repository:
        user, found = self._user(request), self.repositories.get(repo)
        if found is None or (found.private and (user is None or user.name != repo.split("/")[-2])):
            # it does not tell a private repository from one that does not exist
            raise _Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if found.private and user and not user.may_read:
            raise _Refusal(403, "This token does not have access to this repository")
        return found

    def _commit_at(self, request: Request, repo: str, revision: str | None) -> Commit:
        found = self._readable(request, repo).at(revision or "main")
        if found is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # Accounts and repositories

    def _whoami(self, request: Request) -> Answer:
        user = self._user(request)
        if user is None:
            raise _Refusal(401, "Invalid username or password.")
        return _json(
            {"type": "user", "id": user.id, "name": user.name, "auth": {"accessToken": {"role": "write" if user.may_write else "read"}}}
        )

    def _create(self, request: Request) -> Answer:
        wanted = request.json()
        owner = wanted.get("organization") or self._writer(request).name
        self._own(request, owner)
        kind = wanted.get("type") or "model"
        repo = {"model": "", "dataset": "datasets/", "space": "spaces/"}[kind] + f"{owner}/{wanted['name']}"
        if repo in self.repositories:
            raise _Refusal(409, f"You already created this {kind} repo", url=f"{self.url}/{repo}")
        if kind == "space" and wanted.get("sdk") != "gradio":
            raise _Refusal(400, "A Space needs an sdk that is known here")
        hardware = self._known_hardware(wanted.get("hardware"))
        self.repositories[repo] = Repository(private=wanted.get("visibility", "public") == "private", hardware=hardware)
        return _json({"url": f"{self.url}/{repo}", "name": repo})

    def _known_hardware(self, flavor: str | None) -> str | None:
        if flavor is not None and flavor not in {known.value for known in SpaceHardware}:
            raise _Refusal(400, f"Invalid hardware flavor: {flavor}")
        return flavor

    def _space_hardware(self, request: Request, repo: str) -> Answer:
        self._own(request, repo.split("/")[-2])
        found = self._readable(request, repo)
        found.hardware = self._known_hardware(request.json()["flavor"])
        return _json({"stage": "RUNNING_BUILDING", "hardware": {"current": None, "requested": found.hardware}})

    def _info(self, request: Request, repo: str, revision: str | None) -> Answer:
        commit = self._commit_at(request, repo, revision)
        sizes = {path: {"size": len(content)} if request.query.get("blobs") else {} for path, content in commit.files.items()}
        files = [{"rfilename": path} | sizes[path] for path in sorted(commit.files)]
        return _json(
            {
                "id": "/".join(repo.split("/")[-2:]),
                "sha": commit.oid,
                "private": self.repositories[repo].private,
                "tags": [],
                "siblings": files,
            }
        )

    # Jobs

    def _hardware(self, request: Request) -> Answer:
        return _json(JOBS_HARDWARE)

    def _start_job(self, request: Request, owner: str) -> Answer:
        self._own(request, owner)
        job = Job(f"job{len(self.jobs)}", owner, request.json(), self.job_environment and self.job_environment | {"HF_ENDPOINT": self.url})
        self.jobs[job.id] = job
        return _json(job.as_json())

    def _list_jobs(self, request: Request, owner: str) -> Answer:
        self._own(request, owner)
        key, _, value = request.query.get("label", "").partition("=")
        wanted = [job for job in self.jobs.values() if job.owner == owner and (not key or job.spec.get("labels", {}).get(key) == value)]
        return _json([job.as_json() for job in wanted])

    def _job(self, request: Request, owner: str, number: str) -> Answer:
        self._own(request, owner)
        if number not in self.jobs:
            raise _Refusal(404, "Job not found")
        return _json(self.jobs[number].as_json())

    def _cancel_job(self, request: Request, owner: str, number: str) -> Answer:
        self._job(request, owner, number)
        self.jobs[number].end("CANCELED", "Job was canceled")
        return _json({})

    def _job_logs(self, request: Request, owner: str, number: str) -> Answer:
        self._job(request, owner, number)
        lines = [{"data": line, "timestamp": "2026-01-01T00:00:00.000Z"} for line in ["===== Job started", *self.jobs[number].log()]]
        sent = "".join(f"data: {json.dumps(line)}\n\n" for line in lines)
        return Answer(200, sent.encode(), {"Content-Type": "text/event-stream"})

    def _tree(self, request: Request, repo: str, revision: str, folder: str | None) -> Answer:
        files = self._commit_at(request, repo, revision).files
        inside = {path: content for path, content in files.items() if folder is None or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise _Refusal(404, f"{folder} does not exist on this revision", "EntryNotFound")
        entries = [_tree_entry(path, content) for path, content in sorted(inside.items())]
        if request.query.get("recursive", "false").lower() == "true":
            return _json(_folders(inside) + entries)
        depth = folder.count("/") + 1 if folder else 0
        return _json([entry for entry in _folders(inside) + entries if entry["path"].count("/") == depth])

    def _paths_info(self, request: Request, repo: str, revision: str) -> Answer:
        files = self._commit_at(request, repo, revision).files
        wanted = parse_qs(request.body.decode())["paths"] if b"=" in request.body else request.json()["paths"]
        known = {entry["path"]: entry for entry in _folders(files)} | {path: _tree_entry(path, content) for path, content in files.items()}
        return _json([known[path] for path in wanted if path in known])

    # Upload

    def _validate_yaml(self, request: Request) -> Answer:
        sent = request.json()
        faults = list(_card_faults(sent["content"], sent["repoType"]))
        return _json({"errors": [{"message": fault} for fault in faults], "warnings": []}, 400 if faults else 200)

    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        self._writer(request)
        there = self._commit_at(request, repo, revision).files
        files = [
            {
                "path": path,
                "uploadMode": "lfs" if _is_large(path) else "regular",
                "shouldIgnore": False,
                "oid": _oid(path, there[path]) if path in there else None,
            }
            for path in (file["path"] for file in request.json()["files"])
        ]
        return _json({"files": files})

    def _lfs_batch(self, request: Request, repo: str) -> Answer:
        self._writer(request)
        self._readable(request, repo)
        actions = {"verify": {"href": f"{self.url}/{repo}.git/info/lfs/verify"}}
        objects = [
            wanted | {"actions": actions | {"upload": {"href": f"{self.storage_url}/storage/{wanted['oid']}"}}}
            for wanted in request.json()["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, request: Request, oid: str) -> Answer:
        self._refuse_tokens(request)
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise _Refusal(400, "the content does not have this SHA-256")
        self._stored[oid] = request.body
        return Answer(200)

    def _verify(self, request: Request, repo: str) -> Answer:
        self._writer(request)
        wanted = request.json()
        if len(self._stored.get(wanted["oid"], b"")) != wanted["size"]:
            raise _Refusal(400, "the object was not uploaded whole")
        return _json({"message": "OK"})

    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        self._writer(request)
        parent = self._commit_at(request, repo, revision)
        made = self._changed(parent, request.body)
        found = self.repositories[repo]
        if request.query.get("create_pr"):
            found.pull_requests.append(made)
            url = {"pullRequestUrl": f"{self.url}/{repo}/discussions/{len(found.pull_requests)}"}
        else:
            self._own(request, repo.split("/")[-2])
            found.commits.append(made)
            url = {}
        return _json({"success": True, "commitOid": made.oid, "commitUrl": f"{self.url}/{repo}/commit/{made.oid}"} | url)

    def _changed(self, parent: Commit, lines: bytes) -> Commit:
        files, title = dict(parent.files), ""
        for line in lines.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self._stored:
                        raise _Refusal(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = self._stored[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"])
                case key:
                    raise _Refusal(400, f"this server does not know the operation {key}")
        return Commit(title, files)

    # Download

    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        commit = self._commit_at(request, repo, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        etag = f'"{_oid(path, content)}"'
        if not _is_large(path):
            return Answer(200, content, headers | {"ETag": etag})
        self._stored[_oid(path, content)] = content
        headers |= {
            "X-Linked-Etag": etag,
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.storage_url}/storage/{_oid(path, content)}",
        }
        return Answer(302, b"", headers)

    def _fetch(self, request: Request, oid: str) -> Answer:
        self._refuse_tokens(request)
        return Answer(200, self._stored[oid], {"ETag": f'"{oid}"'}) if oid in self._stored else Answer(404)

    def _refuse_tokens(self, request: Request) -> None:
        if request.token:  # as S3 does, whose addresses are signed
            raise _Refusal(400, "Only one auth mechanism allowed")


_REPO = r"((?:(?:datasets|spaces)/)?[^/]+/[^/]+)"
_ROUTES = (
    ("GET", "/api/whoami-v2", "_whoami"),
    ("POST", "/api/repos/create", "_create"),
    ("POST", "/api/validate-yaml", "_validate_yaml"),
    ("POST", r"/api/(spaces/[^/]+/[^/]+)/hardware", "_space_hardware"),
    ("GET", "/api/jobs/hardware", "_hardware"),
    ("POST", "/api/jobs/([^/]+)", "_start_job"),
    ("GET", "/api/jobs/([^/]+)", "_list_jobs"),
    ("GET", "/api/jobs/([^/]+)/([^/]+)", "_job"),
    ("POST", "/api/jobs/([^/]+)/([^/]+)/cancel", "_cancel_job"),
    ("GET", "/api/jobs/([^/]+)/([^/]+)/logs", "_job_logs"),
    ("GET", rf"/api/(?:models/)?{_REPO}(?:/revision/([^/]+))?", "_info"),
    ("GET", rf"/api/(?:models/)?{_REPO}/tree/([^/]+)(?:/(.+))?", "_tree"),
    ("POST", rf"/api/(?:models/)?{_REPO}/paths-info/([^/]+)", "_paths_info"),
    ("POST", rf"/api/(?:models/)?{_REPO}/preupload/([^/]+)", "_preupload"),
    ("POST", rf"/api/(?:models/)?{_REPO}/commit/([^/]+)", "_commit"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "_lfs_batch"),
    ("POST", rf"/{_REPO}\.git/info/lfs/verify", "_verify"),
    ("PUT", "/storage/([0-9a-f]{64})", "_store"),
    ("GET", "/storage/([0-9a-f]{64})", "_fetch"),
    ("GET", rf"/{_REPO}/resolve/([^/]+)/(.+)", "_resolve"),
)
"""Method, path, and the method of HubServer that is called with the request and the path's parts."""


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _oid(path: str, content: bytes) -> str:
    """What names a file's content: its SHA-256, or what git would call it."""
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    return entry | ({"lfs": {"oid": _oid(path, content), "size": len(content), "pointerSize": 130}} if _is_large(path) else {})


def _folders(files: Iterable[str]) -> list[dict[str, Any]]:
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}
    return [{"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0} for path in sorted(folders)]


def _card_faults(content: str, kind: str) -> Iterator[str]:
    """What the real Hub refuses in a README's front matter, of what can go wrong here."""
    front_matter = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        fields = yaml.safe_load(front_matter[1]) if front_matter else {}
    except yaml.YAMLError as error:
        yield f"the metadata is not YAML: {error}"
        return
    if kind == "space":
        yield from space_card.faults(fields)
    base = fields.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
        yield f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet; two would wait for each other for 40 ms

    def _serve(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        address = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = hub.answer(
            Request(self.command, headers["host"], address.path, dict(parse_qsl(address.query)), headers, self._body(headers))
        )
        self.close_connection = answer is None
        answer = answer or Answer(200)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        # a dropped connection has promised more than it brings
        self.send_header("Content-Length", str(len(answer.content) + 1000 * self.close_connection))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *message: object) -> None:
        """Nothing: tests look at `HubServer.requests`."""
