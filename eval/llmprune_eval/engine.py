"""A .gguf file as llama.cpp runs it: the logits of a text, and the time that reading and writing take.

llama.cpp's C interface, from the library inside the package `xllamacpp`, which is not needed otherwise. All
settings are llama.cpp's own: keys and values in float16, flash attention where it has it.

Letters used in shapes: L tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from llmprune.errors import JobError, RequestError

AT_ONCE = 256  # tokens that are decoded at a time, and whose logits are there
PACKAGE = "xllamacpp"
KNOWN = (512, 2048, 512)  # llama.cpp's own context, batch and part of a batch, the first of its parameters


@dataclass(frozen=True)
class Config:
    """What is asked of a model's config."""

    max_position_embeddings: int

    def get_text_config(self, decoder: bool) -> Config:
        """Itself: there is text alone."""
        return self


def config_of(file: Path) -> Config:
    """The config of the model in a file.

    Raises:
        RequestError: it is no whole GGUF file.
    """
    return Config(int(told(file, "context_length")))


def told(file: Path, name: str) -> Any:
    """A field of a file that begins with its architecture; None if it is not there.

    Raises:
        RequestError: it is no whole GGUF file.
    """
    try:
        fields = gguf.GGUFReader(file).fields
        field = fields.get(f"{fields['general.architecture'].contents()}.{name}")
        return None if field is None else field.contents()
    except (OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise RequestError("model", f"{file} is no whole GGUF file; write or download it again") from error


class _Parameters(ctypes.Structure):
    """Larger than those of any version: only the first three fields are looked at."""

    _fields_ = (("context", ctypes.c_uint32 * 3), ("rest", ctypes.c_uint8 * 1012))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embedding", ctypes.c_void_p),
        ("position", ctypes.POINTER(ctypes.c_int32)),
        ("sequences", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


# By function, what it returns and takes.
INTERFACE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_model_default_params": (_Parameters, ()),
    "llama_context_default_params": (_Parameters, ()),
    "llama_model_load_from_file": (ctypes.c_void_p, (ctypes.c_char_p, _Parameters)),
    "llama_init_from_model": (ctypes.c_void_p, (ctypes.c_void_p, _Parameters)),
    "llama_set_n_threads": (None, (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)),
    "llama_model_get_vocab": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (ctypes.c_void_p,)),
    "llama_model_n_params": (ctypes.c_uint64, (ctypes.c_void_p,)),
    "llama_model_size": (ctypes.c_uint64, (ctypes.c_void_p,)),
    "llama_batch_init": (_Batch, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
    "llama_decode": (ctypes.c_int32, (ctypes.c_void_p, _Batch)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (ctypes.c_void_p,)),
    "llama_get_memory": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "llama_memory_clear": (None, (ctypes.c_void_p, ctypes.c_bool)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_free": (None, (ctypes.c_void_p,)),
    "llama_model_free": (None, (ctypes.c_void_p,)),
}
_silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def is_there() -> bool:
    """Whether the package is installed."""
    return find_spec(PACKAGE) is not None


@cache
def _library() -> Any:
    """llama.cpp, with the types of what is called.

    Raises:
        RequestError: it is not installed, or of a version whose interface is another.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise RequestError("model", f"a .gguf file is run by llama.cpp; run pip install {PACKAGE}")
    try:
        library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("*.so"))))
        for name, (returns, takes) in INTERFACE.items():
            function = getattr(library, name)
            function.restype, function.argtypes = returns, takes
        library.llama_log_set(_silent, None)
        library.llama_backend_init()
        known = tuple(library.llama_context_default_params().context) == KNOWN
    except (OSError, AttributeError, StopIteration):
        known = False
    if not known:
        raise RequestError("model", f"this version of {PACKAGE} is not known here; install 2026.10.11549")
    return library


class Engine:
    """A model in llama.cpp.

    Args:
        file: .gguf.
        context: tokens that it can hold at a time.

    Raises:
        RequestError: llama.cpp is not installed.
        JobError: it cannot load the file.
    """

    def __init__(self, file: Path, context: int) -> None:
        self.file, self._library = file, _library()
        self._model = self._library.llama_model_load_from_file(
            os.fsencode(file), self._library.llama_model_default_params()
        )
        if not self._model:
            raise JobError(f"llama.cpp cannot load {file}; check that it is complete")
        asked = self._library.llama_context_default_params()
        asked.context = (ctypes.c_uint32 * 3)(context, AT_ONCE, AT_ONCE)
        self._context = self._library.llama_init_from_model(self._model, asked)
        if not self._context:
            raise JobError(f"llama.cpp has no memory for {context} tokens of {file}; give a smaller --length")
        threads = torch.get_num_threads()
        self._library.llama_set_n_threads(self._context, threads, threads)
        self._batch = self._library.llama_batch_init(AT_ONCE, 0, 1)
        self._held = 0
        weakref.finalize(self, _free, self._library, self._batch, self._context, self._model)
        self.vocabulary = int(
            self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model))
        )
        """V."""
        self.parameters = int(self._library.llama_model_n_params(self._model))
        self.bytes = int(self._library.llama_model_size(self._model))
        """Of all tensors."""
        self.dtype = _dtype_of(file)
        self.config = config_of(file)

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values that one token leaves in all blocks, in float16."""
        queries, blocks = told(self.file, "attention.head_count"), told(self.file, "block_count")
        heads = told(self.file, "attention.head_count_kv") or queries
        # Files whose heads together are as wide as the model do not say how wide one is.
        each = told(self.file, "attention.key_length") or told(self.file, "embedding_length") // queries
        return int(2 * 2 * each * (sum(heads) if isinstance(heads, list) else heads * blocks))

    def pieces(self, ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The logits of a text [L] that nothing precedes, as slices of it with [up to 256, V]."""
        self.forget()
        for start in range(0, len(ids), AT_ONCE):
            part = ids[start : start + AT_ONCE].tolist()
            yield slice(start, start + len(part)), self._decode(part, every=True)

    def forget(self) -> None:
        """Drop the tokens that were read."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._held = 0

    def read(self, ids: list[int]) -> int:
        """Read tokens after those that were read; return the likeliest one to follow."""
        for start in range(0, len(ids), AT_ONCE):
            logits = self._decode(ids[start : start + AT_ONCE], every=False)
        return int(logits[-1].argmax())

    def _decode(self, ids: list[int], *, every: bool) -> Tensor:
        """Read up to 256 tokens; the logits of every one [L, V], or of the last one [1, V]."""
        batch = self._batch
        batch.count = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.position[place] = token, self._held + place
            batch.sequences[place], batch.sequence[place][0] = 1, 0
            batch.wanted[place] = every or place == len(ids) - 1
        if self._library.llama_decode(self._context, batch):
            raise JobError(f"llama.cpp failed to run {self.file}; give a smaller --length")
        self._held += len(ids)
        rows = len(ids) if every else 1
        logits = np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (rows, self.vocabulary))
        return torch.from_numpy(logits.copy())


def _dtype_of(file: Path) -> str:
    """The type of most matrices, as files are named after it."""
    field = gguf.GGUFReader(file).fields.get("general.file_type")
    kind = "unknown" if field is None else gguf.LlamaFileType(int(field.contents())).name
    return kind.removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def _free(library: Any, batch: _Batch, context: int, model: int) -> None:
    library.llama_batch_free(batch)
    library.llama_free(context)
    library.llama_model_free(model)
