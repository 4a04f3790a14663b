"""What one, two and four processes write: the same bytes, or weights of nearly the same perplexity.

Each prunes on 16 x 512 tokens of `builtin` with one thread a process. Perplexity is of builtin's evaluation
half, 16 windows of 512 tokens. Where two cores have nothing else to do (--timed), the seconds of the whole
command are kept, and one process with two threads runs, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from against_authors import commit
from llmprune_eval import evaluation
from llmprune_eval.windows import Protocol
from table import MODEL, RESULTS

from llmprune.checkpoint.shards import sha256

ASKED = {
    "wanda-2of4": ["--recipe", "wanda-2of4"],
    "flap-20": ["--recipe", "flap-20"],
    "cfsp-20": ["--recipe", "cfsp-20"],
    "owl": ["--method", "wanda", "--sparsity", "0.5", "--allocation", "owl"],
    "global": ["--method", "wanda", "--sparsity", "0.5", "--allocation", "global"],
    "sparsegpt-2of4": ["--recipe", "sparsegpt-2of4"],
    "admm-2of4": ["--recipe", "admm-2of4"],
}
TEXT = ["--calibration", "builtin", "--samples", "16", "--length", "512"]
LAUNCHED = [(1, 1), (2, 1), (4, 1)]  # processes, and threads of each
PROTOCOL = Protocol(length=512, windows=16)


def measured(model: Path, words: list[str], work: Path, *, timed: bool) -> dict[str, Any]:
    """The row of a recipe: by processes and threads, the hash of all weights, perplexity and seconds."""
    row: dict[str, Any] = {"sha256": {}, "perplexity": {}, "seconds": {}}
    for count, threads in [(1, 2)] * timed + LAUNCHED:
        name, out = f"{count} x {threads}", work / f"{count}-{threads}"
        shutil.rmtree(out, ignore_errors=True)
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
        asked = [sys.executable, *torchrun, "-m", "llmprune", "prune", model, *words, *TEXT, "--out", out]
        start = time.monotonic()
        around = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run([*map(str, asked)], check=True, capture_output=True, env=around)
        if timed:
            row["seconds"][name] = time.monotonic() - start
        files = "".join(map(sha256, sorted(out.glob("*.safetensors"))))
        row["sha256"][name] = hashlib.sha256(files.encode()).hexdigest()
        found = evaluation.evaluate({"model": str(out)}, ["builtin"], PROTOCOL)
        row["perplexity"][name] = found["model"]["perplexity"][0]["perplexity"]
    return row


def main() -> None:
    """Measure the recipes that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="where folders are kept, until the next is written")
    parser.add_argument("--rows", nargs="+", default=list(ASKED), choices=list(ASKED))
    parser.add_argument("--timed", action="store_true")
    asked = parser.parse_args()
    file = RESULTS / MODEL / "processes.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    for name in asked.rows:
        if name not in rows:
            rows[name] = measured(asked.model, ASKED[name], asked.work, timed=asked.timed)
            print(name, rows[name], flush=True)
            told = {"protocol": " ".join(str(__doc__).split()), "model": MODEL, "commit": commit()}
            file.write_text(json.dumps(told | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
