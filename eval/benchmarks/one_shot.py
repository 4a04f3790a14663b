"""Prune before any training: stronger solvers, orders of units, budgets by text, refined masks.

Calibration and evaluation windows are those of `against_authors.py`. `kl` is the mean KL divergence to the
dense model on held-out windows of 1024 tokens that choose (`held_out.py`), 8 of C4 and the 6 of Wikipedia.
`ratio` is the time of the whole run over one plain forward pass of the calibration set. Rows of searched
budgets, and those that they are compared with, calibrate on the first 16 x 512 of the calibration tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from against_authors import FIXED
from rows import Measuring, measure

SHORT = (16, 512)
N_OF_M = {"pattern": "2:4"}
HELD_OUT = {"name": "affine", "ridge": "held_out"}
ROWS: dict[str, dict[str, Any]] = {
    "wanda-2of4": {"method": "wanda", **N_OF_M},
    "wanda-50-icbs": {"method": "wanda", "recovery": {"name": "refine", "rounds": 2}},
    "best-70": {"method": "admm", "sparsity": 0.7, "allocation": "best"},
    "wanda-2of4-refit": {"method": "wanda", **N_OF_M, "repair": "refit", "propagation": "layer"},
    "sparsegpt-2of4": {"method": "sparsegpt", **N_OF_M},
    "sparsegpt-2of4-rose": {"method": {"name": "sparsegpt", "order": "rose"}, **N_OF_M},
    "sparsegpt-2of4-dense": {"method": "sparsegpt", **N_OF_M, "target": "dense"},
    "admm-2of4": {"method": "admm", **N_OF_M},
    "admm-2of4-dense": {"method": "admm", **N_OF_M, "target": "dense"},
}
UNITS: dict[str, dict[str, Any]] = {
    "obs": {"method": "obs", "repair": HELD_OUT},
    "flap": {"method": "flap", "repair": FIXED},
    "flap-channels": {"method": "flap", "repair": FIXED, "pattern": {"parts": "ffn"}},
    "flap-channels-held_out": {"method": "flap", "repair": HELD_OUT, "pattern": {"parts": "ffn"}},
    "cfsp": {"method": "cfsp", "repair": FIXED},
    "cfsp-held_out": {"method": "cfsp", "repair": HELD_OUT},
    "obs-ridge-1": {"method": {"name": "obs", "ridge": 1.0}, "repair": HELD_OUT},
    "obs-block_influence": {"method": "obs", "repair": HELD_OUT, "allocation": "block_influence"},
}
for share in (50, 60, 70):
    for method in ("wanda", "sparsegpt", "admm"):
        ROWS[f"{method}-{share}"] = {"method": method, "sparsity": share / 100}
for share in (20, 30, 50):
    for name, asked in UNITS.items():
        ROWS[f"{name}-{share}"] = {**asked, "sparsity": share / 100}
SEARCHED = {
    f"flap-30-{allocation}": {**UNITS["flap"], "sparsity": 0.3, "allocation": allocation}
    for allocation in ("uniform", "global_threshold", "block_influence", "search")
}
for share in (30, 50):
    asked = {**UNITS["flap"], "repair": HELD_OUT, "sparsity": share / 100}
    SEARCHED[f"flap-{share}-held_out"] = asked
    for allocation in ("block_influence", "search"):
        SEARCHED[f"flap-{share}-{allocation}-held_out"] = {**asked, "allocation": allocation}
ROWS |= SEARCHED
for name in ("sparsegpt-2of4", "admm-2of4", "flap-20", "cfsp-20", "obs-20"):
    ROWS[f"{name}-short"] = ROWS[name]
for name in ("flap-20", "cfsp-20"):
    ROWS[f"{name}-held_out-short"] = {**ROWS[name], "repair": HELD_OUT}
for ridge in (0.01, 0.1, 1.0, 10.0, "held_out"):
    asked = {**UNITS["flap-channels"], "sparsity": 0.2, "repair": {"name": "affine", "ridge": ridge}}
    ROWS |= {f"ridge-{ridge}": asked, f"ridge-{ridge}-short": asked}
for ridge in (0.01, 0.1, 1.0, "held_out"):
    recovered = {"method": "flap", "sparsity": 0.3, "recovery": {"name": "reconstruct", "ridge": ridge}}
    ROWS |= {f"reconstruct-{ridge}": recovered, f"reconstruct-{ridge}-short": recovered}
for damping in (0.01, 0.1, "held_out"):
    asked = {"method": {"name": "admm", "damping": damping}, **N_OF_M}
    ROWS |= {f"admm-2of4-{damping}": asked, f"admm-2of4-{damping}-short": asked}


def main() -> None:
    """Measure the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--no-test", action="store_true", help="leave WikiText-2 test and perplexity out")
    arguments = parser.parse_args()
    measuring = Measuring(arguments.model, arguments.shared, test=not arguments.no_test)

    def row_of(name: str) -> dict[str, Any]:
        shape = SHORT if name in SEARCHED or name.endswith("-short") else None
        return {"asked": ROWS[name], **measuring.row(ROWS[name], shape)[0]}

    measure(str(__doc__), arguments.out, arguments.rows, measuring, row_of)


if __name__ == "__main__":
    main()
