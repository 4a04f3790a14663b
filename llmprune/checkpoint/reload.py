"""Load a finished checkpoint in a fresh process, with nothing but transformers, and compare it.

Run as a script, this file is that process; it imports nothing of llmprune.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LINE = 'AutoModelForCausalLM.from_pretrained("{folder}"{trust})'


def logits_of(folder: str, how: dict[str, Any], ids: Tensor) -> Tensor:
    """The logits [1, T, V] of the model that plain transformers makes of a folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, how["dtype"]), trust_remote_code=how["trust_remote_code"]
    )
    model = model.to(how["device"]).eval()
    with torch.no_grad():
        logits: Tensor = model(ids.to(how["device"]), use_cache=False).logits.cpu()
    return logits


def faults_of(folder: str, how: dict[str, Any]) -> list[str]:
    """Keys that are missing or of another shape when the folder is loaded without its values."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, device_map={"": "meta"}, trust_remote_code=how["trust_remote_code"], output_loading_info=True
    )
    tied = getattr(model, "all_tied_weights_keys", {})
    return sorted(
        str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind] if str(key) not in tied
    )


def check(folder: Path, expected: Tensor | None, ids: Tensor, how: dict[str, Any]) -> dict[str, Any]:
    """Reload `folder` in a fresh process and say how far its logits are from the model in memory.

    Args:
        folder: the checkpoint.
        expected: logits [1, T, V] of the model in memory, or None where the reloaded model would not fit:
            then only keys and shapes are compared.
        ids: the tokens [1, T] that gave these logits.
        how: `dtype`, `device`, `trust_remote_code`.

    Raises:
        RuntimeError: the folder does not load, or its logits differ by more than rounding.
    """
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        save_file({"ids": ids}, place / "ids.safetensors")
        request = {"folder": str(folder.absolute()), "logits": expected is not None, **how}
        command = [sys.executable, "-P", __file__, json.dumps(request), work]
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
        offline["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # one tensor at a time, not as many as threads can read
        child = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
        if child.returncode:
            raise RuntimeError((child.stderr.strip().splitlines() or ["it died without a word"])[-1])
        trust = ", trust_remote_code=True" if how["trust_remote_code"] else ""
        line = LINE.format(folder="{folder}", trust=trust)
        if expected is None:
            return {"line": line, "compared": "every key and shape", "max_abs_logit_difference": None}
        logits = load_file(place / "logits.safetensors")["logits"].float()
    difference = float((logits - expected.cpu().float()).abs().max())
    tolerance = (1e-4 if how["dtype"] == "float32" else 2e-2) * float(expected.abs().max())
    if not difference <= tolerance:
        raise RuntimeError(
            f"its logits are off by {difference:.3g}, with rounding explaining {tolerance:.1g}"
        )
    return {"line": line, "compared": "logits", "max_abs_logit_difference": difference}


def main() -> None:
    """The fresh process."""
    how, work = json.loads(sys.argv[1]), Path(sys.argv[2])
    if how["logits"]:
        logits = logits_of(how["folder"], how, load_file(work / "ids.safetensors")["ids"])
        save_file({"logits": logits.contiguous()}, work / "logits.safetensors")
    elif faults := faults_of(how["folder"], how):
        sys.exit(f"keys that do not fit: {', '.join(faults[:5])}")


if __name__ == "__main__":
    main()
