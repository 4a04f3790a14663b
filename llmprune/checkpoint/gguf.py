"""Read a .gguf file as an ordinary checkpoint: dequantise it once into the user's cache."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune.checkpoint import shards
from llmprune.checkpoint.shards import sha256
from llmprune.errors import JobError, LlmpruneError, one_line
from llmprune.progress import say


def cache_folder() -> Path:
    """The folder for files that can be computed again: $LLMPRUNE_CACHE, or ~/.cache/llmprune."""
    return Path(os.environ.get("LLMPRUNE_CACHE", Path.home() / ".cache" / "llmprune"))


def dequantised(file: Path) -> Path:
    """Return a folder with the float32 safetensors checkpoint of a .gguf file; create it if needed.

    float32, because bfloat16 cannot hold all dequantised values. The whole model must fit into memory.

    Raises:
        JobError: transformers cannot read the file, or the cache cannot be written.
    """
    folder = cache_folder() / "gguf" / sha256(file)
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # another run may be at it
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                say(f"dequantising {file.name} into {folder} (once)")
                _dequantise(file, folder)
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"{folder} cannot be written: {one_line(error)}; set LLMPRUNE_CACHE to another folder"
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache holds all that was written into it."""
    try:
        return (folder / "config.json").is_file() and bool(shards.read_headers(folder))
    except LlmpruneError:
        return False


def _dequantise(file: Path, folder: Path) -> None:
    """Write the checkpoint of a .gguf file."""
    model, tokenizer = _read(file)
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.chmod(0o755)  # mkdtemp makes it private
        part.rename(folder)  # last, so that the folder is complete or absent
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(file: Path) -> tuple[Any, Any]:
    """The model of a .gguf file in float32, and its tokenizer.

    Raises:
        JobError: transformers cannot read the file.
    """
    arguments: dict[str, object] = {"gguf_file": file.name, "dtype": torch.float32}
    # Newer transformers keeps the weights quantised by default; older ones do not have the option.
    if "dequantize" in inspect.signature(getattr(transformers, "GgufConfig", dict)).parameters:
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, **arguments)
        return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        raise JobError(
            f"transformers cannot read {file} as a causal language model: {one_line(error)}"
        ) from error
