"""Load a checkpoint, pruned or not, ready to use."""

from __future__ import annotations

from typing import Any, Literal

from llmprune_kernels.acceleration import accelerate
from transformers import AutoModelForCausalLM

from llmprune.checkpoint import source
from llmprune.checkpoint.resources import resources
from llmprune.errors import RequestError
from llmprune.progress import say


def load(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kernels: Literal["auto", "none"] = "auto",
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder, a .gguf file or a Hub id.

    Args:
        path: as for `prune`.
        device: `auto` is the accelerator if there is one.
        dtype: a torch dtype by name; `auto` is the checkpoint's, or float32 on the CPU.
        kernels: `auto` times our kernels against the dense layers, uses those that win, and says which and
            why on stderr; such a model is for inference. `none` is plain transformers.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        RequestError: there is no such checkpoint, it has no tokenizer, or there is no such choice of kernels.
    """
    if kernels not in ("auto", "none"):
        raise RequestError("kernels", f"{kernels!r} is not known; allowed: auto, none")
    found = source.find(path, trust_remote_code=trust_remote_code)
    where = resources(device, dtype, None, found.size[1], text=True)
    tokenizer = source.tokenizer(found.folder, trust_remote_code=trust_remote_code)
    found.fetch()
    model = AutoModelForCausalLM.from_pretrained(
        found.folder, dtype=where.dtype, trust_remote_code=trust_remote_code
    )
    model = model.to(where.device).eval()
    if kernels == "auto":
        say(str(accelerate(model)))
    return model, tokenizer
