"""A Hub on the loopback interface, with the part of its protocol that reads a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """The files of one model, and the name of its only commit."""

    files: dict[str, bytes]
    commit: str = COMMIT
    names: tuple[str, ...] = ("main",)
    private: bool = False

    @classmethod
    def of(cls, folder: Path, commit: str = COMMIT) -> Repository:
        """The files of a folder."""
        return cls({path.name: path.read_bytes() for path in sorted(folder.iterdir())}, commit)

    def entry(self, path: str) -> dict[str, Any]:
        """The Hub's facts of a file: its git hash, and the sha256 if it is an LFS object."""
        data = self.files[path]
        told = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
        if stored_beside_git(path):
            told["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return told

    def sibling(self, path: str) -> dict[str, Any]:
        """The same facts with the keys of the other API call."""
        told = self.entry(path)
        said = {"rfilename": path, "size": told["size"], "blobId": told["oid"]}
        if "lfs" in told:
            said["lfs"] = {**told["lfs"], "sha256": told["lfs"]["oid"]}
        return said


def git_hash(data: bytes) -> str:
    """The name of a file's content in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def stored_beside_git(path: str) -> bool:
    """Whether a file is an LFS object."""
    return path.endswith(".safetensors")


@dataclass
class Hub:
    """Repositories by id, the address that serves them, and every request as `METHOD path status`."""

    repositories: dict[str, Repository]
    endpoint: str = ""
    log: list[str] = field(default_factory=list)
    handler: ClassVar[type[BaseHTTPRequestHandler]]

    @contextmanager
    def served(self) -> Iterator[Hub]:
        """Answer requests while the context is open."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (self.handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def sent(self, status: int = 200) -> set[str]:
        """The names of all files that were sent, whole (200) or in part (206)."""
        lines = [line.split() for line in self.log]
        return {
            path.rsplit("/", 1)[1]
            for method, path, answer in lines
            if method == "GET" and "/resolve/" in path and answer == str(status)
        }


class Handler(BaseHTTPRequestHandler):
    """Answer the requests that read from a Hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._about("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse("EntryNotFound")

    def _about(self, name: str, rest: list[str]) -> None:
        repository = self._repository(name, rest[1] if rest[:1] in (["revision"], ["tree"]) else "main")
        if repository is None:
            return
        if rest[:1] == ["tree"]:
            return self._say([repository.entry(path) for path in repository.files])
        facts = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "private": repository.private,
            "siblings": [repository.sibling(path) for path in repository.files],
        }
        self._say(facts)

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if path not in repository.files:
            return self._refuse("EntryNotFound", {"X-Repo-Commit": repository.commit})
        data = repository.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"X-Repo-Commit": repository.commit, "ETag": etag, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or self.command == "HEAD":
            return self._send(data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(data[first : last + 1], headers, 206)

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse("RepoNotFound")
        elif revision not in (repository.commit, *repository.names):
            self._refuse("RevisionNotFound")
            return None
        return repository

    def _refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": code}).encode()
        self._send(body, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, 404)

    def _say(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.hub.log.append(f"{self.command} {self.path.split('?')[0]} {status}")
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


Hub.handler = Handler
