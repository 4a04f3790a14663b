"""Stock llama.cpp, as the tests run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

xllamacpp: Any = pytest.importorskip("xllamacpp", reason="needs xllamacpp==2026.10.11549: pip install it")


class Predicted(NamedTuple):
    """What the engine says after a prompt."""

    tokens: list[int]
    top: list[dict[int, float]]
    """Log-probabilities of the likeliest tokens at every step."""


def predicted(file: Path, prompt: list[int], count: int) -> Predicted:
    """Continue token ids greedily; keys and values in float32, no flash attention."""
    asked = xllamacpp.CommonParams()
    asked.model.path = str(file)
    asked.n_gpu_layers, asked.cpuparams.n_threads, asked.n_ctx, asked.warmup = 0, 1, 256, False
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer = xllamacpp.Server(asked).handle_completions(
        {"prompt": prompt, "temperature": 0, "max_tokens": count, "logprobs": 5}
    )
    content = answer["choices"][0]["logprobs"]["content"]
    top = [{one["id"]: one["logprob"] for one in step["top_logprobs"]} for step in content]
    return Predicted([step["id"] for step in content], top)
