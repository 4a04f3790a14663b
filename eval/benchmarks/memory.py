"""Peak anonymous memory of pruning a checkpoint of Llama-2-7B's shape, with random bfloat16 weights.

The checkpoint (13.5 GB) is made on disk shard by shard unless the folder holds it. The pruning runs in a
child process; its anonymous memory (RssAnon of /proc/PID/status: what the system cannot drop, unlike mapped
files) is read every 50 ms, children included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from against_authors import commit
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

GIB = 1 << 30


def make(folder: Path, blocks: int) -> None:
    """Write the checkpoint, one block per shard."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_hidden_layers=blocks,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()}
    folder.mkdir(parents=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    groups: dict[str, list[str]] = {}
    for key in shapes:
        groups.setdefault(key.split(".")[2] if ".layers." in key else "rest", []).append(key)
    weight_map = {}
    for name, keys in groups.items():
        torch.manual_seed(len(weight_map))
        file = f"model-{name}.safetensors"
        tensors = {k: torch.randn(shapes[k], dtype=torch.bfloat16).mul_(0.02) for k in keys}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(keys, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, **{chr(i): i - 30 for i in range(33, 127)}}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)


def anonymous(process: psutil.Process, *, children: bool = True) -> int:
    """Bytes that a process, and its children, hold for themselves."""
    total = 0
    for member in [process, *(process.children(recursive=True) if children else ())]:
        try:
            lines = Path(f"/proc/{member.pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
        except (OSError, psutil.Error):  # it ended meanwhile
            continue
    return total


def main() -> None:
    """Make the checkpoint if need be, prune it, print what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--samples", default="8")
    parser.add_argument("--length", default="128")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not asked.folder.exists():
        make(asked.folder, asked.blocks)
    target = asked.folder.with_name(asked.folder.name + "-pruned")
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-c", "from llmprune.cli import main; main()", "prune", str(asked.folder)]
    command += ["--method", asked.method, "--pattern", asked.pattern, "--samples", asked.samples]
    command += ["--length", asked.length, "--out", str(target), "--json"]
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as printed, subprocess.Popen(command, stdout=printed) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, anonymous(process))
            time.sleep(0.05)
        printed.seek(0)
        report = json.load(printed)
    result = {
        "commit": commit(),
        "method": asked.method,
        "pattern": asked.pattern,
        "blocks": asked.blocks,
        "tokens": f"{asked.samples} x {asked.length}",
        "peak_anonymous_gib": round(peak / GIB, 3),
        "seconds": round(time.monotonic() - start, 1),
        "checkpoint_bytes": report["model"]["bytes"],
        "reload": report["reload"],
        "versions": report["versions"],
    }
    print(json.dumps(result))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(target)


if __name__ == "__main__":
    main()
