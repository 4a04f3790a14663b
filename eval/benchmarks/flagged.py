"""Does the evaluation tell a model that rambles from one that does not: `talk` and `sharp` of three recipes.

64 prompts and 200 questions a task, dense and pruned side by side in float32; pruned on 32 x 1024 tokens of
WikiText-2 validation, or of C4 without its last 80 documents. Differences to the dense model with 95 % paired
bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from against_authors import FIXED, write
from held_out import documents
from llmprune_eval import evaluation, talk, tasks
from llmprune_eval.windows import Protocol

import llmprune
from llmprune.recipe.text import load_data

LIMIT = 200
WIKITEXT = "data/Salesforce/wikitext/wikitext-2-raw-v1/validation.parquet"
LITTLE = {"method": "cfsp", "sparsity": 0.05}
RECIPES: dict[str, dict[str, Any]] = {
    "wanda-2of4": {"recipe": "wanda-2of4"},
    "flap-50": {"recipe": "flap-50"},
    "cfsp-5": {**LITTLE, "repair": FIXED},
    "cfsp-5-c4": {**LITTLE, "repair": {"name": "affine", "ridge": "held_out"}},
}


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one model's results."""
    compared = found["comparison"]
    figures = {key: found["talk"][key] for key in talk.FIGURES}
    return {"name": name, **figures, "talk": compared["talk"], "sharp": compared["kept"]["sharp"]}


def main() -> None:
    """Prune, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path, help="where the pruned models are kept")
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    asked = parser.parse_args()
    c4 = asked.work / "c4.jsonl"
    c4.write_text("\n".join(json.dumps({"text": one}) for one in documents(asked.shared, "c4", "teaching")))
    for name, how in RECIPES.items():
        text = c4 if name.endswith("-c4") else asked.shared / WIKITEXT
        recipe = load_data(how["recipe"]) if "recipe" in how else dict(how)
        recipe["calibration"] = {"dataset": str(text), "samples": 32, "length": 1024}
        llmprune.prune(asked.model, recipe, out=asked.work / name, resume=True)
    names = {"baseline": str(asked.model), **{name: str(asked.work / name) for name in RECIPES}}
    sharp = tasks.ask("sharp", limit=LIMIT, data=asked.shared / "data")
    where = {"trust_remote_code": True}
    results = evaluation.evaluate(names, [], Protocol(), sharp, where, talk.PROMPTS)
    for name in RECIPES:
        write(asked.out, str(__doc__), str(asked.model), row(name, results[name]))


if __name__ == "__main__":
    main()
