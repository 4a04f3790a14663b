"""A .gguf file as an ordinary checkpoint: dequantised once, into the user's cache."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune.checkpoint.shards import sha256
from llmprune.errors import JobError
from llmprune.progress import say


def cache_folder() -> Path:
    """Where llmprune keeps what it can make again: $LLMPRUNE_CACHE, or ~/.cache/llmprune."""
    return Path(os.environ.get("LLMPRUNE_CACHE", Path.home() / ".cache" / "llmprune"))


def dequantised(file: Path) -> Path:
    """A folder with the float32 safetensors checkpoint of a .gguf file.

    Quantised GGUF values have no exact bfloat16 form, hence float32. The whole model is in memory meanwhile.

    Raises:
        JobError: transformers cannot read the file.
    """
    folder = cache_folder() / "gguf" / sha256(file)
    if (folder / "config.json").is_file():
        return folder
    say(f"dequantising {file.name} into {folder} (once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        arguments: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32}
        if "dequantize" in inspect.signature(getattr(transformers, "GgufConfig", dict)).parameters:
            arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(file.parent, **arguments)
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(part)
        part.chmod(0o755)
        part.rename(folder)
    except Exception as error:
        raise JobError(f"transformers cannot read {file} as a causal language model: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
