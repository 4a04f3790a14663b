"""Load a checkpoint, pruned or not, ready to use."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import plan
from llmprune.checkpoint import source


def load(
    path: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder, a .gguf file or a Hub id.

    Args:
        path: as for `prune`.
        device: `auto` is the GPU if there is one.
        dtype: a torch dtype by name; `auto` is the checkpoint's, or float32 on the CPU.
        trust_remote_code: whether code that comes with the checkpoint may run.
    """
    found = source.find(path, trust_remote_code=trust_remote_code)
    where = plan.resources(device, dtype, None, found.size[1], text=True)
    found.fetch()
    model = AutoModelForCausalLM.from_pretrained(
        found.folder, dtype=where.dtype, trust_remote_code=trust_remote_code
    )
    tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=trust_remote_code)
    return model.to(where.device).eval(), tokenizer
