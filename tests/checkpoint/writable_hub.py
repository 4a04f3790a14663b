"""A loopback Hub that accepts uploads, and can be made to fail."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.checkpoint.hub import Handler, Hub, Repository, stored_beside_git

TOKENS = {"hf_writes": "write", "hf_reads": "read"}
CUT = -1  # instead of a status: close the connection in the middle of what is sent


@dataclass
class Fault:
    """Answer matching requests with an error status, or not at all, at most `times` times."""

    request: str
    """A regular expression for `METHOD path`."""
    status: int
    message: str = ""
    times: int = 1_000
    headers: dict[str, str] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    """Further keys of the answer."""


@dataclass
class Versioned:
    """A repository with all its commits."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """The commits of its pull requests."""
    private: bool = False

    @classmethod
    def new(cls, private: bool = False) -> Versioned:
        """As the Hub creates it: one commit that lists which files are LFS objects."""
        files = {".gitattributes": b"*.safetensors filter=lfs\n"}
        commit = name_of(files, "")
        return cls({commit: files}, {"main": commit}, private=private)

    def commit_of(self, revision: str) -> str | None:
        """The commit of a branch, a tag, a pull request or a commit."""
        pulls = {f"refs/pr/{number}": commit for number, commit in enumerate(self.requests, 1)}
        named = {**self.tags, **self.branches, **pulls, **{commit: commit for commit in self.commits}}
        return named.get(revision)


def name_of(files: dict[str, bytes], parent: str) -> str:
    """A commit's name."""
    told = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())]
    return hashlib.sha1(json.dumps([parent, told]).encode()).hexdigest()


@dataclass
class WritableHub(Hub):
    """`me` may write with one token and read with the other; `others` belongs to somebody else."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    versioned: dict[str, Versioned] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """The LFS objects, by sha256."""
    faults: list[Fault] = field(default_factory=list)
    loses: set[str] = field(default_factory=set)
    """Objects that are gone by the time they are committed, each once."""
    rival: str = ""
    """A file that somebody else commits during the next push."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrote(self) -> list[str]:
        """The requests since the log was cleared that send a file or change a repository."""
        return [line for line in self.log if re.match(r"PUT|POST \S+/(commit|create|branch|tag)\b", line)]


class WritableHandler(Handler):
    """Answer the requests that write, too."""

    hub: WritableHub

    def do_PUT(self) -> None:
        data = self._received()
        if data is None:
            return
        oid = self.path.split("?")[0].rsplit("/", 1)[1]
        assert "Authorization" not in self.headers, "storage is no place for the token"
        if hashlib.sha256(data).hexdigest() != oid:
            return self._say({"error": "not what was promised"}, 400)
        self.hub.objects[oid] = data
        self._say({})

    def do_POST(self) -> None:
        data = self._received()
        if data is None:
            return
        if self._role() is None:
            return self._say({"error": "Invalid username or password."}, 401)
        path = urlsplit(self.path).path
        routes: dict[str, Callable[..., None]] = {
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": lambda _: self._say({"errors": [], "warnings": []}),
            r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
            r"/api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            r"/api/models/([^/]+/[^/]+)/branch/(.+)": self._branch,
            r"/api/models/([^/]+/[^/]+)/tag/(.+)": self._tag,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/lfs/verify": self._verify,
        }
        for pattern, answer in routes.items():
            if found := re.fullmatch(pattern, path):
                with self.hub.lock:
                    return answer(data, *map(unquote, found.groups()))
        self._refuse("EntryNotFound")

    def _received(self) -> bytes | None:
        """The body of the request; None if a fault was answered instead."""
        fault = self._fault()
        if fault is None:
            return self._body()
        if fault.status == CUT:
            self.rfile.read(1)
            self.hub.log.append(f"{self.command} {self.path.split('?')[0]} cut")
            self.close_connection = True
            return None
        self._body()
        message = fault.message.replace("{token}", self.headers.get("Authorization", ""))
        body = json.dumps({"error": message, **fault.answer}).encode()
        self._send(body, fault.headers, fault.status)
        return None

    def _fault(self) -> Fault | None:
        request = f"{self.command} {urlsplit(self.path).path}"
        with self.hub.lock:
            fits = (fault for fault in self.hub.faults if fault.times and re.search(fault.request, request))
            fault = next(fits, None)
            if fault is not None:
                fault.times -= 1
            return fault

    def _body(self) -> bytes:
        """The request's body, in one piece or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _role(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _may_write(self, name: str, *, pull: bool = False) -> bool:
        """Refuse a token that may only read; it may open a pull request."""
        if self._role() == "write" and (pull or name.startswith("me/")):
            return True
        self._say({"error": "You don't have the rights to write here."}, 403)
        return False

    def _create(self, data: bytes) -> None:
        asked = json.loads(data)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if not self._may_write(name):
            return
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.versioned:
            return self._say({"error": "You already created this model repo", "url": url}, 409)
        self.hub.versioned[name] = Versioned.new(asked.get("visibility") == "private")
        self._say({"name": name, "url": url})

    def _preupload(self, data: bytes, name: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is None or not self._may_write(name, pull="create_pr" in self.path):
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if stored_beside_git(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(repository, file["path"]),
            }
            for file in json.loads(data)["files"]
        ]
        self._say({"files": files})

    def _oid(self, repository: Repository, path: str) -> str | None:
        if path not in repository.files:
            return None
        entry = repository.entry(path)
        oid: str = entry.get("lfs", entry)["oid"]
        return oid

    def _batch(self, data: bytes, name: str) -> None:
        told = []
        for asked in json.loads(data)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                to = {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}?signature=secret"}
                one["actions"] = {"upload": to, "verify": {"href": f"{self.hub.endpoint}/lfs/verify"}}
            told.append(one)
        self._say({"transfer": "basic", "objects": told})

    def _verify(self, data: bytes) -> None:
        self._say({}, 200 if json.loads(data)["oid"] in self.hub.objects else 404)

    def _commit(self, data: bytes, name: str, revision: str) -> None:
        pull = "create_pr" in parse_qs(urlsplit(self.path).query)
        repository = self._repository(name, revision)
        if repository is None or not self._may_write(name, pull=pull):
            return
        if self.hub.rival:
            repository = self._overtaken(name, repository)
        lines = [json.loads(line) for line in data.splitlines()]
        if lines[0]["value"].get("parentCommit", repository.commit) != repository.commit:
            return self._say({"error": "A commit has happened since."}, 412)
        files = dict(repository.files)
        for line in lines[1:]:
            if not self._apply(files, line["key"], line["value"]):
                return self._say({"error": "LFS pointer pointed to a file that does not exist"}, 400)
        versioned = self.hub.versioned[name]
        commit = name_of(files, repository.commit)
        versioned.commits[commit] = files
        said = {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit}
        if pull:
            versioned.requests.append(commit)
            said["pullRequestUrl"] = f"{self.hub.endpoint}/{name}/discussions/{len(versioned.requests)}"
        else:
            versioned.branches[revision] = commit
        self._say(said)

    def _overtaken(self, name: str, before: Repository) -> Repository:
        files = {**before.files, self.hub.rival: b"theirs"}
        commit, self.hub.rival = name_of(files, before.commit), ""
        self.hub.versioned[name].commits[commit] = files
        self.hub.versioned[name].branches["main"] = commit
        return Repository(files, commit)

    def _apply(self, files: dict[str, bytes], kind: str, value: dict[str, Any]) -> bool:
        path = value["path"]
        if kind == "file":
            files[path] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            if path in self.hub.loses:
                self.hub.loses.discard(path)
                self.hub.objects.pop(value["oid"], None)
            if value["oid"] not in self.hub.objects:
                return False
            files[path] = self.hub.objects[value["oid"]]
        else:
            del files[path]
        return True

    def _branch(self, data: bytes, name: str, branch: str) -> None:
        versioned = self.hub.versioned[name]
        if not self._may_write(name):
            return
        if branch in versioned.branches:
            return self._say({"error": "Reference already exists"}, 409)
        versioned.branches[branch] = versioned.branches["main"]
        self._say({})

    def _tag(self, data: bytes, name: str, revision: str) -> None:
        repository, tag = self._repository(name, revision), json.loads(data)["tag"]
        if repository is None or not self._may_write(name):
            return
        if tag in self.hub.versioned[name].tags:
            return self._say({"error": "Tag already exists"}, 409)
        self.hub.versioned[name].tags[tag] = repository.commit
        self._say({})

    def _repository(self, name: str, revision: str) -> Repository | None:
        versioned = self.hub.versioned.get(name)
        if versioned is None or (versioned.private and self._role() is None):
            return super()._repository(name, revision)
        commit = versioned.commit_of(unquote(revision))
        if commit is None:
            self._refuse("RevisionNotFound")
            return None
        return Repository(versioned.commits[commit], commit, private=versioned.private)


WritableHub.handler = WritableHandler
