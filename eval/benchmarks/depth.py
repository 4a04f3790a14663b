"""Remove whole blocks by every criterion, with and without refitting seams, and the same share by width.

Calibration and evaluation windows are those of `against_authors.py`. `kl` is the mean KL divergence to the
dense model on held-out windows of 1024 tokens that choose (`held_out.py`), 8 of C4 and the 6 of Wikipedia.
A criterion that is nested is run once, at the largest share, and its order is used for the smaller ones.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from against_authors import FIXED
from rows import Measuring, measure

from llmprune.recipe.text import load_data

SHARES = (0.1, 0.2, 0.3)
CRITERIA = ("shortgpt", "angular", "sleb", "laptop")
REPAIRS = ("none", "span")
RECIPES = ("depth-20", "depth-10-width-10")
WIDTHS = {"cfsp": {"method": "cfsp", "repair": FIXED}, "flap": {"method": "flap", "repair": FIXED}}
ROWS: dict[str, dict[str, Any]] = {}
for share in SHARES:
    for criterion in CRITERIA:
        for repair in REPAIRS:
            asked = {"method": criterion, "pattern": "blocks", "sparsity": share, "repair": repair}
            ROWS[f"{criterion}-{share:.0%}-{repair}".replace("%", "")] = asked
    for width, asked in WIDTHS.items():
        ROWS[f"{width}-{share:.0%}-affine".replace("%", "")] = asked | {"sparsity": share}
ROWS |= {name: load_data(name) for name in RECIPES}


def row_of(name: str, measuring: Measuring, orders: dict[str, Any]) -> dict[str, Any]:
    """Prune, and measure."""
    asked = dict(ROWS[name])
    order = orders.get(asked.get("method"))
    if order is not None:  # the criterion has been run already, at the largest share
        count = round(asked.pop("sparsity") * measuring.dense.config.num_hidden_layers)
        asked |= {"method": "whole", "pattern": {"name": "blocks", "remove": order[:count]}}
    row, report = measuring.row(asked)
    if report.recipe["method"]["name"] == "whole":
        row["removed"] = [site.block for site in report.sites if site.reached]
    return {"asked": ROWS[name], **row}


def main() -> None:
    """Measure the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    parser.add_argument("--orders", type=Path, help="JSON with the order of removal of nested criteria")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    arguments = parser.parse_args()
    measuring = Measuring(arguments.model, arguments.shared)
    orders = json.loads(arguments.orders.read_text()) if arguments.orders else {}
    row = partial(row_of, measuring=measuring, orders=orders)
    measure(str(__doc__), arguments.out, arguments.rows, measuring, row)


if __name__ == "__main__":
    main()
