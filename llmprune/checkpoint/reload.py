"""Load a finished checkpoint in a fresh process, with transformers alone, and compare its logits.

Run as a script, this file is that process, so it imports nothing of llmprune.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LINE = 'AutoModelForCausalLM.from_pretrained("{folder}"{trust})'


class LoadOptions(TypedDict):
    """How to load a checkpoint."""

    dtype: str
    device: str
    trust_remote_code: bool


class Checked(TypedDict):
    """The entry of the report for the check: the line that loads the folder, and what was compared."""

    line: str
    compared: str
    max_abs_logit_difference: float | None


def logits_of(folder: str, how: LoadOptions, ids: Tensor) -> Tensor:
    """Load a folder with plain transformers and compute the logits [1, T, V] of `ids` [1, T]."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype, trust = getattr(torch, how["dtype"]), how["trust_remote_code"]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    packed = getattr(config, "quantization_config", None)
    if packed:  # as the pruned model in memory, whatever kernels this machine has
        from llmprune.checkpoint import edge_blocks

        edge_blocks.install()
        config.quantization_config = {**packed, "dequantize": True}
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, trust_remote_code=trust)
    for parameter in model.parameters() if packed else ():  # some formats come out as bfloat16 in any case
        parameter.data = parameter.data.to(dtype)
    model = model.to(how["device"]).eval()
    with torch.no_grad():
        logits: Tensor = model(ids.to(how["device"]), use_cache=False).logits.cpu()
    return logits


def mismatched_keys(folder: str, how: LoadOptions) -> list[str]:
    """The keys that are missing or have another shape; no weights are read into memory."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, device_map={"": "meta"}, trust_remote_code=how["trust_remote_code"], output_loading_info=True
    )
    tied = getattr(model, "all_tied_weights_keys", {})
    return sorted(
        str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind] if str(key) not in tied
    )


def check(folder: Path, expected: Tensor | None, ids: Tensor, how: LoadOptions) -> Checked:
    """Reload `folder` in a fresh process, and compare its logits with those of the model in memory.

    Args:
        folder: the checkpoint.
        expected: logits [1, T, V] of the model in memory; None if the reloaded model would not fit into
            memory, so that only keys and shapes are compared.
        ids: the tokens [1, T] of these logits.
        how: how to load it.

    Raises:
        RuntimeError: the folder does not load, or its logits differ by more than rounding.
    """
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        save_file({"ids": ids}, place / "ids.safetensors")
        request = {"folder": str(folder.absolute()), "logits": expected is not None, **how}
        # -P keeps the folder of this file off the path, where its modules would hide others of that name.
        command = [sys.executable, "-P", __file__, json.dumps(request), work]
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
        offline["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # one tensor at a time, not as many as threads can read
        child = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
        if child.returncode:
            raise RuntimeError((child.stderr.strip().splitlines() or ["it ended without a message"])[-1])
        trust = ", trust_remote_code=True" if how["trust_remote_code"] else ""
        line = LINE.format(folder="{folder}", trust=trust)
        if expected is None:
            return {"line": line, "compared": "every key and shape", "max_abs_logit_difference": None}
        logits = load_file(place / "logits.safetensors")["logits"].float()
    difference = float((logits - expected.cpu().float()).abs().max())
    # Rounding differs between the two: the model in memory was run block by block, perhaps offloaded.
    tolerance = (1e-4 if how["dtype"] == "float32" else 2e-2) * float(expected.abs().max())
    if not difference <= tolerance:  # `not <=`, so that NaN fails too
        raise RuntimeError(
            f"its logits differ by {difference:.3g}, and rounding explains at most {tolerance:.1g}"
        )
    return {"line": line, "compared": "logits", "max_abs_logit_difference": difference}


def main() -> None:
    """Run as the fresh process."""
    how, work = json.loads(sys.argv[1]), Path(sys.argv[2])
    if how["logits"]:
        logits = logits_of(how["folder"], how, load_file(work / "ids.safetensors")["ids"])
        save_file({"logits": logits.contiguous()}, work / "logits.safetensors")
    elif faults := mismatched_keys(how["folder"], how):
        sys.exit(f"keys that are missing or of another shape: {', '.join(faults[:5])}")


if __name__ == "__main__":
    main()
