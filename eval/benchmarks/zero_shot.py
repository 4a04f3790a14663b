"""Zero-shot scores of recipes beside the dense model's: a suite of lm-eval's tasks, seeded questions of each.

Calibrated on the tokens of against_authors.py where a recipe needs text; float32. The figures of a model are
written as soon as they are there, into a file of its own; asked again, this goes on with the models that are
missing, or that were asked fewer questions. `answers` holds every question's score, in the order of their
numbers, so that rows of as many questions can be compared in pairs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from against_authors import ROWS, calibration_tokens, write
from llmprune_eval import comparison, tasks
from shared_beginnings import SharedBeginnings
from table import RESULTS, rows_of

import llmprune
from llmprune.recipe import Recipe
from llmprune.recipe.text import load_data
from llmprune.text.sources.base import Documents

RECIPES = (
    *("wanda-2of4", "sparsegpt-2of4", "flap-20", "flap-30-affine", "cfsp-20", "wanda-50", "sparsegpt-50"),
    *("prunenet-20", "magnitude-50", "flap-50", "prunenet-30", "cfsp-50", "flap-20-self", "cfsp-30-recover"),
    *("flap-20-synthetic", "owl-70"),
)
BASELINES = {"owl-70": ROWS["owl_70"]}
OUT = RESULTS / "smollm2-135m" / "zero_shot"


def pruned(model: str, shared: Path, name: str, out: Path) -> dict[str, Any]:
    """Prune by a shipped recipe or a baseline, and say what is left."""
    recipe = BASELINES.get(name) or load_data(name)
    text = isinstance(Recipe.parse(recipe).calibration.source, Documents)
    totals = llmprune.prune(
        model, recipe, tokens=calibration_tokens(model, shared) if text else None, out=out
    ).totals
    return {"sparsity": totals["sparsity"], "parameters": totals["parameters_after"]}


def scores(folder: str, asked: tasks.Ask) -> dict[str, Any]:
    """What lm-eval says of a model."""
    model, tokenizer = llmprune.load(folder, kernels="none", dtype="float32", trust_remote_code=True)
    return dict(tasks.score(model, tokenizer, asked, SharedBeginnings)["tasks"])


def answers(scored: dict[str, Any]) -> dict[str, str]:
    """The score of every question, which is 0 or 1."""
    told = {}
    for name, values in scored.items():
        right = [values["examples"][number] for number in sorted(values["examples"], key=int)]
        told[name] = "".join(str(int(one)) for one in right)
    return told


def beside(dense: dict[str, str], own: dict[str, str]) -> dict[str, Any]:
    """Differences to the dense model, in pairs of answers, and of the mean over the tasks."""

    def numbered(line: str) -> dict[str, float]:
        return {str(number): float(one) for number, one in enumerate(line)}

    pairs = {name: (numbered(dense[name]), numbered(own[name])) for name in own}
    single = {name: comparison.paired(*pair) for name, pair in pairs.items()}
    return {**single, "mean": comparison.averaged(list(pairs.values()))}


def row(
    name: str, about: dict[str, Any], scored: dict[str, Any], dense: dict[str, str] | None
) -> dict[str, Any]:
    """One model's figures."""
    told = answers(scored)
    table = {
        task: {"metric": v["metric"], "score": v[v["metric"]], "stderr": v[f"{v['metric']}_stderr"]}
        for task, v in scored.items()
    }
    table["mean"] = {"metric": "mean", "score": sum(v["score"] for v in table.values()) / len(table)}
    for task, difference in beside(dense, told).items() if dense else ():
        table[task] |= {key: difference[key] for key in ("difference", "interval")}
    return {"name": name, **about, "tasks": table, "answers": told}


def protocol(asked: tasks.Ask) -> str:
    """How it is measured, in a sentence."""
    return (
        f"{', '.join(asked.tasks)}; 0-shot, lm-eval's own prompts and scores, of each task at most as many "
        f"questions as the row says, drawn with seed {asked.seed}, fewer ones among more; float32 on the "
        "CPU; intervals: paired bootstrap over questions, 95 %"
    )


def main() -> None:
    """Measure the models that are missing, the dense one first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("shared", type=Path)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--tasks", default="paper")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    asked = tasks.ask(
        given.tasks,
        limit=given.limit,
        seed=given.seed,
        data=given.shared / "data",
    )
    rows = {one["name"]: one for one in rows_of(given.out)}
    if any(one["protocol"] != protocol(asked) for one in rows.values()):
        parser.error(f"{given.out} holds figures of another protocol; give another --out")
    if rows and rows["dense"]["questions"] > given.limit:
        parser.error(f"the dense model was asked {rows['dense']['questions']} questions; give as many")
    for name in ("dense", *given.recipes):
        if name in rows and rows[name]["questions"] >= given.limit:
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            folder = given.model if name == "dense" else f"{work}/{name}"
            about = {} if name == "dense" else pruned(given.model, given.shared, name, Path(folder))
            scored = scores(folder, asked)
        about |= {"seconds": round(time.monotonic() - start), "questions": given.limit}
        rows[name] = row(name, about, scored, None if name == "dense" else rows["dense"]["answers"])
        write(given.out, protocol(asked), given.model, rows[name])
        print(json.dumps({key: rows[name][key] for key in ("name", "seconds", "tasks")}), flush=True)


if __name__ == "__main__":
    main()
