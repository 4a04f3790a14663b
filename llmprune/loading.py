"""Load a checkpoint, pruned or not, ready to use."""

from __future__ import annotations

from typing import Any, Literal

from llmprune_kernels.acceleration import accelerate
from transformers import AutoModelForCausalLM

from llmprune.checkpoint import placement, reader, source
from llmprune.checkpoint.resources import resources
from llmprune.errors import RequestError
from llmprune.progress import say


def load(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kernels: Literal["auto", "none"] = "auto",
    device_map: placement.Asked | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder, a .gguf file or a Hub id.

    Args:
        path: as for `prune`.
        device: `auto` is the accelerator if there is one.
        dtype: a torch dtype by name; `auto` is the checkpoint's, or float32 on the CPU.
        kernels: `auto` times our kernels against the dense layers, uses those that win, and says which and
            why on stderr; such a model is for inference. `none` is plain transformers.
        device_map: where its modules are, on accelerators, in host memory (`cpu`) or on `disk`, from which
            each forward pass loads them: `auto`, a JSON or YAML file of module: device, or such a mapping.
            Kernels need the model on one device.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        RequestError: there is no such checkpoint, it has no tokenizer, or there is no such choice of kernels,
            module or device.
    """
    if kernels not in ("auto", "none"):
        raise RequestError("kernels", f"{kernels!r} is not known; allowed: auto, none")
    if device_map is not None and device != "auto":
        raise RequestError("device", f"{device} was asked, and a device map too; leave one of them out")
    found = source.find(path, trust_remote_code=trust_remote_code)
    where = resources(device, dtype, None, found.size[1], text=True)
    tokenizer = source.tokenizer(found.folder, trust_remote_code=trust_remote_code)
    if device_map is not None:
        places = placement.settled(device_map, reader.without_weights(found), where.dtype, {})
        return placement.dispatched(found, where.dtype, places), tokenizer
    found.fetch()
    model = AutoModelForCausalLM.from_pretrained(
        found.folder, dtype=where.dtype, trust_remote_code=trust_remote_code
    )
    model = model.to(where.device).eval()
    if kernels == "auto":
        say(str(accelerate(model)))
    return model, tokenizer
