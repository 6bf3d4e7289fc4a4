"""A stand-in for the Hugging Face Hub: the part of its protocol that downloads and uploads use, over real HTTP.

Spoken: repository info and tree at a commit, resolve (HEAD and GET, redirect of LFS files to another path, Range),
gated and private repositories, creating a repository, preupload, the LFS batch, PUT, and the commit.
Faults can be planted: a download that breaks off, bytes that change on the way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM_BYTES = 1000
"""Files of this size and more are LFS files here."""


def blob_id(content: bytes) -> str:
    """Return the git id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """One repository: commits, each with all its files."""

    kind: str
    name: str
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        """Add a commit with these files over the last one's, and return its id."""
        everything = dict(self.commits.get(self.head, {})) | files
        seen = repr((self.kind, self.name, len(self.commits), sorted(everything.items())))
        self.head = hashlib.sha1(seen.encode()).hexdigest()
        self.commits[self.head] = everything
        self.messages.append(message)
        return self.head

    def find(self, revision: str) -> str | None:
        """Return the commit that a revision names, or None."""
        if revision in ("main", "HEAD"):
            return self.head or None
        return revision if revision in self.commits else None


class Hub:
    """The server's state: repositories, uploaded objects, planted faults, and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.break_off_after: dict[str, int] = {}
        """Path → bytes after which its next download breaks off (once)."""
        self.corrupt: set[str] = set()
        """Paths whose bytes are changed on the way, size kept."""
        self.requests: list[tuple[str, str, str]] = []
        """(method, path, Range header) of everything asked."""
        self.tokens = {"hf_good"}

    def add(self, kind: str, name: str, files: dict[str, bytes], **access: bool) -> Repository:
        """Add a repository with one commit."""
        repository = self.repositories[kind, name] = Repository(kind, name, **access)
        repository.commit(files)
        return repository

    def downloads(self) -> list[str]:
        """Return the paths of files whose content was requested, in order."""
        return [
            path for method, path, _ in self.requests if method == "GET" and ("/resolve/" in path or "/cdn/" in path)
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        self.query = parse_qs(urlsplit(self.path).query)
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((method, path, self.headers.get("Range", "")))
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            return self._json({"name": "tester", "type": "user"}) if self._token() else self._error(401)
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if parts[0] == "cdn":
            return self._send_file(self.hub.objects[parts[1]], path, parts[2])
        if parts[0] == "lfs-put":
            self.hub.objects[parts[1]] = self.body
            return self._json({})
        if parts[0] == "api":
            return self._api(parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:])
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        if ".git/" in path:
            return self._lfs_batch()
        return self._resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]), method)

    # Access.

    def _token(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return token if token in self.hub.tokens else ""

    def _open(self, kind: str, name: str, content: bool) -> Repository | None:
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and not self._token()):
            self._error(404 if self._token() else 401, "RepoNotFound", "Repository not found")
            return None
        if repository.gated and content:
            self._error(403 if self._token() else 401, "GatedRepo", f"Access to {kind} {name} is restricted")
            return None
        return repository

    # Reading.

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        repository = self._open(kind, name, content=bool(rest) and rest[0] == "tree")
        if repository is None:
            return None
        action = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else "main"
        if action == "preupload":
            return self._preupload()
        if action == "commit":
            return self._commit(repository)
        commit = repository.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if action == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        if action == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths", [])
            wanted = wanted or json.loads(self.body or b"{}").get("paths", [])
            return self._json([entry for path in wanted for entry in _entries(files, path, exact=True)])
        assert action == "tree", self.path
        below = "/".join(rest[2:])
        entries = _entries(files, below)
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            entries = _one_level(files, below)
        return self._json(entries)

    def _resolve(self, kind: str, name: str, revision: str, path: str, method: str) -> None:
        repository = self._open(kind, name, content=True)
        if repository is None:
            return None
        commit = repository.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repository.commits[commit].get(path)
        if content is None:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_id(content)}"'}
        if len(content) < LFS_FROM_BYTES:
            return self._send_file(content, path, path, headers)
        oid = hashlib.sha256(content).hexdigest()
        self.hub.objects[oid] = content
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        host = self.headers["Host"].replace("127.0.0.1", "localhost")  # another host, as a content network's
        return self._respond(302, b"", headers | {"Location": f"http://{host}/cdn/{oid}/{path.replace('/', '%2F')}"})

    def _send_file(self, content: bytes, _: str, name: str, headers: dict[str, str] | None = None) -> None:
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{hashlib.sha256(content).hexdigest()}"'} | (headers or {})
        name = unquote(name)
        if name in self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        status, start = 200, 0
        wanted = self.headers.get("Range", "")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = self.hub.break_off_after.pop(name, None) if self.command == "GET" else None
        self._respond(status, content[start:], headers, stop)

    # Writing.

    def _create(self) -> None:
        if not self._token():
            return self._error(401, "", "Invalid credentials in Authorization header")
        wanted = json.loads(self.body)
        organization = wanted.get("organization") or "tester"
        kind, name = wanted.get("type", "model"), f"{organization}/{wanted['name']}"
        url = f"http://{self.headers['Host']}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repositories:
            body = json.dumps({"error": "You already created this repo", "url": url}).encode()
            return self._respond(409, body, {"Content-Type": "application/json"})
        self.hub.repositories[kind, name] = Repository(kind, name, private=wanted.get("visibility") == "private")
        self.hub.repositories[kind, name].commit({".gitattributes": b""})
        return self._json({"url": url})

    def _preupload(self) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_FROM_BYTES else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _lfs_batch(self) -> None:
        host = self.headers["Host"]
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                **(
                    {}
                    if one["oid"] in self.hub.objects
                    else {"actions": {"upload": {"href": f"http://{host}/lfs-put/{one['oid']}"}}}
                ),
            }
            for one in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository) -> None:
        if not self._token():
            return self._error(401, "", "Invalid credentials in Authorization header")
        files: dict[str, bytes] = {}
        message = ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.hub.objects[value["oid"]]
                if hashlib.sha256(content).hexdigest() != value["oid"]:
                    return self._error(400, "", f"{value['path']}: the object's hash differs")
                files[value["path"]] = content
        commit = repository.commit(files, message)
        url = f"http://{self.headers['Host']}/{repository.name}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    # Answers.

    def _json(self, value: object) -> None:
        self._respond(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        body = json.dumps({"error": message or "no"}).encode()
        self._respond(status, body, {"Content-Type": "application/json"} | extra | (headers or {}))

    def _respond(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if stop is None else body[:stop])
        if stop is not None:
            self.wfile.flush()
            self.connection.close()


def _tree_entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if len(content) >= LFS_FROM_BYTES:
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry


def _entries(files: dict[str, bytes], below: str, exact: bool = False) -> list[dict[str, object]]:
    """Return the files below a folder; or the file or folder of that very path."""
    if exact:
        if below in files:
            return [_tree_entry(below, files[below])]
        return [_folder_entry(below)] if any(path.startswith(below + "/") for path in files) else []
    return [_tree_entry(path, files[path]) for path in sorted(files) if not below or path.startswith(below + "/")]


def _one_level(files: dict[str, bytes], below: str) -> list[dict[str, object]]:
    prefix = below + "/" if below else ""
    names = sorted({path[len(prefix) :].split("/")[0] for path in files if path.startswith(prefix)})
    return [entry for name in names for entry in _entries(files, prefix + name, exact=True)]


def _folder_entry(path: str) -> dict[str, object]:
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Serve `hub` on a free port and yield its URL."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
