"""A loopback Hub that receives large files in chunks (Xet), as the real one does."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import lz4.frame
import numpy as np

from tests.checkpoint.writable_hub import WritableHandler, WritableHub

STORAGE = "/cas"
KEY = "xet_key"  # storage has tokens of its own, which the Hub hands out
HASH, ENTRY = 32, 48  # bytes in a shard
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags of a file there: what follows its entries
PLAIN, LZ4, GROUPED = range(3)


@dataclass(frozen=True)
class Term:
    """A range of chunks of a xorb, which is a part of a file."""

    xorb: str
    first: int
    end: int


@dataclass
class XetHub(WritableHub):
    """Its storage keeps all uploads, because the client does not upload the same chunk twice."""

    xorbs: dict[str, bytes] = field(default_factory=dict)
    """Concatenated chunks, by hash."""
    terms: dict[str, list[Term]] = field(default_factory=dict)
    """The parts of each file, by the hash of the file."""
    names: dict[str, str] = field(default_factory=dict)
    """The hashes of the files, by the sha256 of their content."""

    def register(self, shard: bytes) -> None:
        """Assemble the files that a shard lists."""
        for name, terms in files_of(shard).items():
            data = b"".join(self.content(term) for term in terms)
            oid = hashlib.sha256(data).hexdigest()
            self.terms[name], self.names[oid], self.objects[oid] = terms, name, data

    def content(self, term: Term) -> bytes:
        """The bytes of one part of a file."""
        return b"".join(chunks_of(self.xorbs[term.xorb])[term.first : term.end])

    def reconstruction(self, name: str) -> dict[str, Any]:
        """The answer from which the client finds the parts of a file."""
        terms = self.terms[name]
        return {
            "offset_into_first_range": 0,
            "terms": [
                {
                    "hash": term.xorb,
                    "unpacked_length": len(self.content(term)),
                    "range": {"start": term.first, "end": term.end},
                }
                for term in terms
            ],
            "fetch_info": {
                term.xorb: [
                    {
                        "range": {"start": 0, "end": len(chunks_of(self.xorbs[term.xorb]))},
                        "url": f"{self.endpoint}{STORAGE}/xorbs/{term.xorb}?signature=secret",
                        "url_range": {"start": 0, "end": len(self.xorbs[term.xorb]) - 1},
                    }
                ]
                for term in terms
            },
        }


def chunks_of(xorb: bytes) -> list[bytes]:
    """The content of all chunks; each has a header of eight bytes: version, sizes, compression."""
    chunks, at = [], 0
    while at < len(xorb):
        size, kind = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        at += 8 + size
        packed = xorb[at - size : at]
        data = packed if kind == PLAIN else lz4.frame.decompress(packed)
        chunks.append(data if kind != GROUPED else _ungrouped(data))
    return chunks


def _ungrouped(data: bytes) -> bytes:
    """Undo the grouping of every fourth byte, which makes numbers of four bytes compress better."""
    out, at = np.empty(len(data), np.uint8), 0
    for first in range(4):
        count = len(out[first::4])
        out[first::4] = np.frombuffer(data[at : at + count], np.uint8)
        at += count
    return out.tobytes()


def files_of(shard: bytes) -> dict[str, list[Term]]:
    """The files of a shard: an entry with the hash of the file, then one for every part."""
    files, at = {}, ENTRY
    while (name := shard[at : at + HASH]) != b"\xff" * HASH:
        flags, count = _numbers(shard, at)[:2]
        parts = range(at + ENTRY, at + ENTRY * (count + 1), ENTRY)
        files[_hexadecimal(name)] = [
            Term(_hexadecimal(shard[part : part + HASH]), *_numbers(shard, part)[2:]) for part in parts
        ]
        at += ENTRY * (1 + count * (1 + bool(flags & VERIFIED)) + bool(flags & DESCRIBED))
    return files


def _numbers(shard: bytes, at: int) -> list[int]:
    """The four numbers after the hash of an entry."""
    return np.frombuffer(shard[at + HASH : at + ENTRY], "<u4").tolist()


def _hexadecimal(name: bytes) -> str:
    """A hash as the client writes it: four numbers of eight bytes."""
    return "".join(f"{number:016x}" for number in np.frombuffer(name, "<u8").tolist())


class XetHandler(WritableHandler):
    """Issue keys of the storage, and answer requests to it."""

    hub: XetHub

    def do_GET(self) -> None:
        if self._received() is None:
            return
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/xet-(write|read)-token/.+", path):
            self._hand_out(*found.groups())
        elif found := re.fullmatch(rf"{STORAGE}/v1/reconstructions/(\w+)", path):
            self._reconstruct(found[1])
        elif found := re.fullmatch(rf"{STORAGE}/xorbs/(\w+)", path):
            self._send(self.hub.xorbs[found[1]], {}, 206)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        if not self.path.startswith(STORAGE):
            return super().do_POST()
        data = self._received()
        if data is None:
            return
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self._say({"error": "no key of this storage"}, 401)
        if found := re.fullmatch(rf"{STORAGE}/v1/xorbs/default/(\w+)", self.path):
            self.hub.xorbs[found[1]] = data
            self._say({"was_inserted": True})
        elif self.path == f"{STORAGE}/v1/shards":
            with self.hub.lock:
                self.hub.register(data)
            self._say({"result": 1})
        else:
            self._refuse("EntryNotFound")

    def _hand_out(self, name: str, kind: str) -> None:
        if kind == "write" and not self._may_write(name, pull="create_pr" in self.path):
            return
        told = {"casUrl": f"{self.hub.endpoint}{STORAGE}", "exp": int(time.time()) + 3600, "accessToken": KEY}
        headers = {
            "X-Xet-Cas-Url": told["casUrl"],
            "X-Xet-Access-Token": KEY,
            "X-Xet-Token-Expiration": str(told["exp"]),
        }
        self._send(json.dumps(told).encode(), headers)

    def _reconstruct(self, name: str) -> None:
        size = sum(len(self.hub.content(term)) for term in self.hub.terms[name])
        wanted = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", "bytes=0-"))
        assert wanted is not None
        if int(wanted[1]) >= size:
            return self._say({"error": "nothing is there"}, 416)
        assert int(wanted[1]) == 0, "a file of a test is read in one piece"
        self._say(self.hub.reconstruction(name))

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        """Send as the parent does, with the Xet hash of a file that is stored in chunks."""
        name = self.hub.names.get(hashlib.sha256(body).hexdigest())
        if name is not None and self.command == "HEAD":
            model, commit = "/".join(self.path.split("/")[1:3]), headers["X-Repo-Commit"]
            way = f"{self.hub.endpoint}/api/models/{model}/xet-read-token/{commit}"
            headers = {**headers, "X-Xet-Hash": name, "Link": f'<{way}>; rel="xet-auth"'}
        super()._send(body, headers, status)


XetHub.handler = XetHandler
