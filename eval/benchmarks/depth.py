"""Remove whole blocks by every criterion, with and without refitting seams, and the same share by width.

Calibration and evaluation windows are those of `against_authors.py`. `kl` is the mean KL divergence to the
dense model on held-out windows of 1024 tokens that choose (`held_out.py`), 8 of C4 and 8 of Wikipedia.
A criterion that is nested is run once, at the largest share, and its order is used for the smaller ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from against_authors import calibration_tokens, perplexity_of, tokens_of, write
from held_out import compared, windows
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmprune
from llmprune.recipe.text import load_data

SHARES = (0.1, 0.2, 0.3)
CRITERIA = ("shortgpt", "angular", "sleb", "laptop")
REPAIRS = ("none", "span")
RECIPES = ("depth-20", "depth-10-width-10")
WIDTHS = {"cfsp": {"method": "cfsp", "repair": "affine"}, "flap": {"method": "flap", "repair": "affine"}}
ROWS: dict[str, dict[str, Any]] = {}
for share in SHARES:
    for criterion in CRITERIA:
        for repair in REPAIRS:
            asked = {"method": criterion, "pattern": "blocks", "sparsity": share, "repair": repair}
            ROWS[f"{criterion}-{share:.0%}-{repair}".replace("%", "")] = asked
    for width, asked in WIDTHS.items():
        ROWS[f"{width}-{share:.0%}-affine".replace("%", "")] = asked | {"sparsity": share}
ROWS |= {name: load_data(name) for name in RECIPES}


def row_of(
    name: str, model: Path, shared: Path, texts: dict[str, Any], orders: dict[str, Any]
) -> dict[str, Any]:
    """Prune, and measure."""
    asked = dict(ROWS[name])
    order = orders.get(asked.get("method"))
    if order is not None:  # the criterion has been run already, at the largest share
        depth = orders["depth"]
        asked |= {
            "method": "whole",
            "pattern": {"name": "blocks", "remove": order[: round(asked.pop("sparsity") * depth)]},
        }
    out = Path(tempfile.mkdtemp()) / "out"
    try:
        report = llmprune.prune(model, asked, tokens=texts["calibration"], out=out)
        pruned = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=True).eval()
        row = {
            "name": name,
            "asked": ROWS[name],
            "perplexity": perplexity_of(pruned, texts["test"]),
            "parameters": report.totals["parameters_after"],
            "seconds": report.time["total_s"],
        }
        if report.recipe["method"]["name"] == "whole":
            row["removed"] = [site.block for site in report.sites if site.reached]
        for text in ("c4", "wikipedia"):
            found = compared(texts["dense"], pruned, texts[text])
            row[f"kl_{text}"] = [one.kl / one.predictions for one in found]
            row[f"top1_{text}"] = sum(one.same for one in found) / sum(one.predictions for one in found)
        return row | {"versions": report.versions}
    finally:
        shutil.rmtree(out.parent)


def main() -> None:
    """Measure the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    parser.add_argument("--orders", type=Path, help="JSON with the order of removal of nested criteria")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    held = {"choosing": True, "count": 8, "length": 1024}
    texts: dict[str, Any] = {
        "calibration": calibration_tokens(str(arguments.model), arguments.shared),
        "test": tokens_of(arguments.shared, "test", tokenizer),
        "dense": AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval(),
        **{name: windows(arguments.shared, name, tokenizer, **held) for name in ("c4", "wikipedia")},
    }
    orders = json.loads(arguments.orders.read_text()) if arguments.orders else {}
    orders["depth"] = texts["dense"].config.num_hidden_layers
    for name in arguments.rows:
        if not (arguments.out / f"{name}.json").exists():
            row = row_of(name, arguments.model, arguments.shared, texts, orders)
            print(name, row["perplexity"], flush=True)
            write(arguments.out, str(__doc__), str(arguments.model), row)


if __name__ == "__main__":
    main()
