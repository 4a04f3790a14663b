"""Read the headers of a checkpoint's safetensors files, and write such files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmprune.errors import JobError, RequestError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {f"{kind}{bits}" for kind in "UI" for bits in (8, 16, 32, 64)}
TYPES = {*DTYPES, *INTEGERS, "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"}
BLOB = re.compile(r"/blobs/([0-9a-f]{64})$")  # the Hub's cache names a large file by its sha256
PACKED = re.compile(r"\.(compressed|bitmask|weight_packed|qweight|row_offsets)$")


class HeaderEntry(TypedDict):
    """A tensor in the header of a safetensors file, once `_require_sound` has checked it."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint, on disk."""

    file: Path
    key: str
    bytes: int
    type: str
    """The dtype, as safetensors names it."""
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements, as they are stored: packed ones can be several numbers."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """Read the tensor, in its stored dtype."""
        with safe_open(self.file, framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(self.key)
        return tensor


def shard_files(folder: Path) -> list[str]:
    """The names of a checkpoint's weight files.

    Raises:
        RequestError: there are no safetensors files, or the index names files outside the folder.
    """
    if (folder / INDEX).is_file():
        return indexed_files((folder / INDEX).read_bytes())
    if (folder / SINGLE).exists():
        return [SINGLE]
    if any(path.suffix in PICKLES for path in folder.iterdir()):
        raise RequestError(
            "model",
            f"{folder} holds only pickled weights, which can run code when they are read; convert them once "
            "with `AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` and prune the result",
        )
    raise RequestError(
        "model", f"{folder} holds no {SINGLE} and no {INDEX}; name a folder with safetensors weights"
    )


def indexed_files(index: bytes) -> list[str]:
    """The file names in a shard index.

    Raises:
        RequestError: it is not an index, or names files outside the folder.
    """
    try:
        files = sorted(set(json.loads(index)["weight_map"].values()))
        if not files or not all(isinstance(file, str) for file in files):
            raise TypeError("no weight_map of file names")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RequestError("model", f"{INDEX} is not a shard index ({error!r}); download it again") from error
    for file in files:
        # An index from a stranger must not make us read any file of the user's.
        if file != Path(file).name or not file.endswith(".safetensors"):
            raise RequestError(
                "model", f"{INDEX} names {file!r}; only .safetensors files inside the folder are read"
            )
    return files


def read_headers(folder: Path, *, packed: bool = False) -> dict[str, Stored]:
    """All tensors of a checkpoint, by key; `packed` if its config says how they are packed.

    Raises:
        JobError: a shard is missing, truncated or unreadable.
        RequestError: the weights are packed in a format that transformers cannot read.
    """
    found: dict[str, Stored] = {}
    for name in shard_files(folder):
        found |= read_file(folder / name)
    strange = next((stored for stored in found.values() if stored.type not in TYPES), None)
    if strange:
        raise JobError(
            f"the shard {strange.file} holds {strange.key} as {strange.type}, which safetensors does not "
            "know; download it again"
        )
    strangers = sorted(key for key in found if PACKED.search(key)) if not packed else []
    if strangers:
        raise RequestError(
            "model",
            f"{folder} holds packed weights ({strangers[0]}), which transformers would replace by random "
            "ones; give the dense checkpoint they were packed from",
        )
    _require_index_agrees(folder, found)
    return found


def read_file(file: Path) -> dict[str, Stored]:
    """All tensors of one safetensors file, by key."""
    found = {}
    for key, entry in _header(file).items():
        start, stop = entry["data_offsets"]
        found[key] = Stored(file, key, stop - start, entry["dtype"], tuple(entry["shape"]))
    return found


def _require_index_agrees(folder: Path, found: dict[str, Stored]) -> None:
    if not (folder / INDEX).is_file():
        return
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    missing = [key for key, file in weight_map.items() if key not in found or found[key].file.name != file]
    if missing:
        key = missing[0]
        raise JobError(
            f"{INDEX} promises {key} in {weight_map[key]}, which does not hold it; download both again"
        )


def _header(file: Path) -> dict[str, HeaderEntry]:
    """Read the header of one safetensors file: its length in 8 bytes, then JSON; the data follow."""
    # Not by safetensors itself, whose errors do not say whether a file is missing or truncated.
    if not file.is_file():
        raise JobError(f"the shard {file} is missing; download the checkpoint again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        # The length can be any number in a damaged file: never read more than there is.
        text = stream.read(length) if length <= size - 8 else b""
    try:
        header: dict[str, HeaderEntry] = json.loads(text)
        header.pop("__metadata__", None)
        for entry in header.values():
            _require_sound(entry)
        needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(
            f"the shard {file} is truncated or not a safetensors file; download it again"
        ) from error
    if size != needed:
        raise JobError(f"the shard {file} is truncated: it has {size} of {needed} bytes; download it again")
    return header


def _require_sound(entry: HeaderEntry) -> None:
    """Raise a ValueError, KeyError or TypeError unless the entry describes a tensor."""
    start, stop = entry["data_offsets"]
    sizes = [start, stop, *entry["shape"]]
    # `type() is int`, because True is an instance of int.
    if not isinstance(entry["dtype"], str) or start > stop or any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError(entry)


def sha256(file: Path) -> str:
    """The sha256 of a file; read from the name of its target if it is a link into the Hub's cache."""
    if file.is_symlink() and (blob := BLOB.search(file.readlink().as_posix())):
        return blob[1]
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_atomically(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file as a whole or not at all.

    Raises:
        JobError: the disk is full, or the folder cannot be written.
    """
    part = file.with_name(file.name + ".part")
    try:
        part.touch()
        mode = part.stat().st_mode  # as the user's umask wants it; safetensors makes its files private
        save_file(_contiguous(tensors), part, metadata={"format": "pt"})
        part.chmod(mode)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())  # before the rename, or a power cut can leave an empty file
        part.replace(file)
        sync_folder(file.parent)
    except Exception as error:  # safetensors wraps the system's errors in its own
        part.unlink(missing_ok=True)
        raise JobError(f"cannot write {file}: {error}; free some space, then rerun with --resume") from error


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to disk, so that a rename survives a power cut."""
    if os.name == "nt":  # which opens no folder as a file
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def total_bytes(tensors: dict[str, Stored]) -> int:
    """Bytes of the tensors on disk."""
    return sum(stored.bytes for stored in tensors.values())
