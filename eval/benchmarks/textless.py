"""Prune without text, beside real text: the same model, share and evaluation, other calibrations and methods.

Evaluation as in against_authors.py. Channels only, the same share in every block, unless the row says FLAP.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from against_authors import FIXED, block_weights, calibration_tokens, perplexity, tokens_of, write
from transformers import AutoTokenizer

import llmprune

CHANNELS = {"pattern": {"name": "units", "parts": "ffn"}, "layout": "uniform", "allocation": "uniform"}
SYNTHETIC = {"dataset": "synthetic", "samples": 128, "length": 128, "redraws": 2}
LONGER = {"samples": 32, "length": 512}  # as in the recipes
SHORT = {"samples": 256, "length": 64}
OWN = {"dataset": "self", **SHORT}


def rows(policy: str | None, shared: Path) -> dict[str, dict[str, Any]]:
    """What is asked, by name; `policy` is a trained one, or every row trains its own.

    Rows that end in `-text` get the tokens of against_authors.py, a text of the kind that is evaluated;
    those that end in `-c4` one of another kind.
    """
    learned = {"name": "prunenet", "policy": policy}
    another = {"dataset": str(shared / "data/calib/c4/train.parquet"), "samples": 32, "length": 1024}
    found: dict[str, dict[str, Any]] = {}
    for share in (0.2, 0.3):
        percent = round(100 * share)
        texts = {"": {}, "-synthetic": {"calibration": SYNTHETIC}, "-c4": {"calibration": another}}
        for text, more in texts.items():
            asked = {"method": learned, "sparsity": share, **CHANNELS, **more}
            found[f"prunenet-{percent}{text}"] = asked
            found[f"prunenet-{percent}-affine{text}"] = asked | {"repair": FIXED}
        found[f"prunenet-{percent}-affine-text"] = found[f"prunenet-{percent}-affine"]
        asked = {"method": "wanda", "sparsity": share, **CHANNELS, "calibration": OWN}
        found[f"wanda-{percent}-self"] = asked
        found[f"wanda-{percent}-affine-self"] = asked | {"repair": FIXED}
        for method in ("row_norm", "spectral", "random", "wanda"):
            asked = {"method": method, "sparsity": share, **CHANNELS, "calibration": SYNTHETIC}
            found[f"{method}-{percent}"] = asked
    there = {"name": "prunenet", "share": 0.2}
    found["prunenet-20-trained-at-20"] = {"method": there, "sparsity": 0.2, **CHANNELS}
    for text, size in (("synthetic", LONGER), ("self", SHORT), ("builtin", LONGER)):
        found[f"flap-20-{text}"] = {
            "method": "flap",
            "sparsity": 0.2,
            "calibration": {"dataset": text, **size},
        }
    return found


def main() -> None:
    """Run the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("shared", type=Path)
    parser.add_argument("--policy", help="a policy.safetensors, to spare the training")
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--out", type=Path, help="a folder of eval/results, for a file a row")
    arguments = parser.parse_args()
    test = tokens_of(arguments.shared, "test", AutoTokenizer.from_pretrained(arguments.model))
    for name, asked in rows(arguments.policy, arguments.shared).items():
        if arguments.rows and name not in arguments.rows:
            continue
        out = Path(tempfile.mkdtemp()) / "out"
        tokens = calibration_tokens(arguments.model, arguments.shared) if name.endswith("-text") else None
        report = llmprune.prune(arguments.model, asked, tokens=tokens, out=out)
        row = {
            "name": name,
            "perplexity": perplexity(out, test),
            "removed_of_block_weights": sum(s.dropped for s in report.sites) / block_weights(arguments.model),
            "parameters": report.totals["parameters_after"],
            "seconds": report.time["total_s"],
            "training": report.learned,
        }
        shutil.rmtree(out.parent)
        print(json.dumps(row), flush=True)
        if arguments.out:
            write(arguments.out, str(__doc__), arguments.model, row)


if __name__ == "__main__":
    main()
