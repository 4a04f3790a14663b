"""Prune with the calibration tokens of ../shared/baselines, and compare with what the authors' code reached.

Same calibration windows, same evaluation windows (WikiText-2 test, non-overlapping, no special tokens),
float32. `ratio` is the whole time of the pruning, text, loading and writing included, over one plain
forward of the calibration set through the blocks, both from the same run (`llmprune_report.json`);
`ratio_to_plain_forward` takes that forward as measured on its own, right after.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from llmprune_eval.perplexity import window_loss
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import llmprune
from llmprune.text import sources
from llmprune.text.tokenizing import tokenize

FIXED = {"name": "affine", "ridge": 0.01}  # the default of when most rows were measured
ROWS: dict[str, dict[str, Any]] = {
    "wanda_50": {"method": "wanda"},
    "wanda_60": {"method": "wanda", "sparsity": 0.6},
    "wanda_2_4": {"method": "wanda", "pattern": "2:4"},
    "wanda_4_8": {"method": "wanda", "pattern": "4:8"},
    "sparsegpt_50": {"method": "sparsegpt"},
    "sparsegpt_2_4": {"method": "sparsegpt", "pattern": "2:4"},
    "magnitude_50": {"method": "magnitude"},
    "magnitude_2_4": {"method": "magnitude", "pattern": "2:4"},
    "flap_20": {"method": "flap", "sparsity": 0.2},
    "flap_30": {"method": "flap", "sparsity": 0.3},
    "flap_50": {"method": "flap", "sparsity": 0.5},
    "flap_30_affine": {"method": "flap", "sparsity": 0.3, "repair": FIXED},
    "cfsp_20": {"method": "cfsp", "sparsity": 0.2},
    "cfsp_30": {"method": "cfsp", "sparsity": 0.3},
    "cfsp_30_recover": {"method": "cfsp", "sparsity": 0.3, "recovery": "lora"},
    "cfsp_50": {"method": "cfsp", "sparsity": 0.5},
    "owl_70": {"method": "wanda", "sparsity": 0.7, "allocation": "owl"},
}
for name in ("flap_20", "cfsp_20", "cfsp_30"):  # after the comma, what the authors' code does differently
    free = ROWS[name] | {"pattern": {"multiple": 1}}
    ROWS[f"{name},multiple=1"] = free
    if name.startswith("cfsp"):  # it divides angles by 1e4, and these are 32 x 1024
        ROWS[f"{name},multiple=1,temperature=3.28"] = free | {"allocation": {"temperature": 32 * 1024 / 1e4}}
for name in ("cfsp_20", "cfsp_30", "cfsp_50"):  # what FLAP's repair adds, in the same forward
    ROWS[f"{name},repair=mean_bias"] = ROWS[name] | {"repair": "mean_bias"}
BASELINES = "baselines/smollm2-135m.json"
WIKITEXT = "data/Salesforce/wikitext/wikitext-2-raw-v1"


def tokens_of(shared: Path, split: str, tokenizer: Any) -> torch.Tensor:
    """The ids of a WikiText-2 split."""
    file = sources.for_evaluation(str(shared / WIKITEXT / f"{split}.parquet"))
    return tokenize(file.text("evaluation"), tokenizer)


def calibration_tokens(model: str, shared: Path) -> torch.Tensor:
    """The windows [N, L] of WikiText-2 validation that the authors' code was calibrated on.

    Under a tokenizer of fewer tokens, those that would begin behind the last window begin anew at the first.
    """
    asked = json.loads((shared / BASELINES).read_text())["calibration"]
    ids = tokens_of(shared, "validation", AutoTokenizer.from_pretrained(model))
    windows = ids.unfold(0, asked["length"], 1)
    return torch.stack([windows[start % len(windows)] for start in asked["starts"]])


def perplexity(folder: str | Path, ids: torch.Tensor, windows: int = 32, length: int = 1024) -> float:
    """The baselines' perplexity of a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    return perplexity_of(model, ids, windows, length)


def perplexity_of(model: Any, ids: torch.Tensor, windows: int = 32, length: int = 1024) -> float:
    """The same of a model in memory."""
    losses = [window_loss(model, ids[i * length : (i + 1) * length]) for i in range(windows)]
    return float(torch.tensor(losses, dtype=torch.float64).mean().exp())


@torch.no_grad()
def forward_seconds(folder: str | Path, batches: list[torch.Tensor]) -> float:
    """One plain forward of the calibration set through the model without its head."""
    trunk = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().base_model
    start = time.perf_counter()
    for ids in batches:
        trunk(ids, use_cache=False)
    return time.perf_counter() - start


def block_weights(folder: str | Path) -> int:
    """How many weights the linear layers of all blocks have."""
    with torch.device("meta"):
        blocks = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).model.layers
    return sum(m.weight.numel() for m in blocks.modules() if isinstance(m, torch.nn.Linear))


def write(folder: Path, about: str, model: str, row: dict[str, Any]) -> None:
    """A row's own file of results: how it was measured, on what, with which commit, and the figures."""
    measured = {"protocol": " ".join(about.split()), "model": Path(model).name, "commit": commit()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{row['name']}.json").write_text(json.dumps(measured | row, indent=1) + "\n")


def commit() -> str:
    """The commit of llmprune that is measured, with a `+` where its code was changed since."""
    here = ["git", "-C", str(Path(__file__).parents[2])]
    code = ["llmprune", "kernels/llmprune_kernels", "eval/llmprune_eval", "recipes"]
    at = subprocess.run(
        [*here, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True
    )
    changed = subprocess.run([*here, "diff", "--quiet", "HEAD", "--", *code], check=False).returncode
    return at.stdout.strip() + "+" * changed


def run(
    model: str, name: str, asked: dict[str, Any], tokens: torch.Tensor, test: torch.Tensor
) -> dict[str, Any]:
    """One row."""
    out = Path(tempfile.mkdtemp()) / "out"
    try:
        report = llmprune.prune(model, tokens=tokens, out=out, **asked)
        row = {
            "name": name,
            "asked": asked,
            "perplexity": perplexity(out, test),
            "sparsity": report.totals["sparsity"],
            "removed_of_block_weights": sum(s.dropped for s in report.sites) / block_weights(model),
            "parameters": report.totals["parameters_after"],
        }
        plain = forward_seconds(model, list(tokens.split(2))) if report.calibration else None
        floor = report.time["forward_floor_s"]
        pruning = sum(report.time[part] for part in ("calibration_s", "solve_s", "write_s"))
        return row | {
            "pruning_s": pruning,
            "forward_floor_s": floor,
            "forward_s": plain,
            "ratio": pruning / floor if floor else None,
            "ratio_to_plain_forward": pruning / plain if plain else None,
            "versions": report.versions,
        }
    finally:
        shutil.rmtree(out.parent)


def main() -> None:
    """Run the rows that were asked for, and print each beside the authors'."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("shared", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--propagation", choices=["dense", "block", "layer"])
    parser.add_argument("--out", type=Path, help="a folder of eval/results, for a file a row")
    arguments = parser.parse_args()
    baselines = json.loads((arguments.shared / BASELINES).read_text())["rows"]
    authors = {row["name"]: row for row in baselines}
    tokens = calibration_tokens(arguments.model, arguments.shared)
    test = tokens_of(arguments.shared, "test", AutoTokenizer.from_pretrained(arguments.model))
    for name in arguments.rows:
        asked = ROWS[name] | ({"propagation": arguments.propagation} if arguments.propagation else {})
        row = run(arguments.model, name, asked, tokens, test)
        theirs = authors.get(name.partition(",")[0], {})
        row["authors_perplexity"] = theirs.get("ppl_32_windows")
        row["authors_ratio"] = theirs.get("time_over_one_forward")
        print(json.dumps(row), flush=True)
        if arguments.out:
            write(arguments.out, str(__doc__), arguments.model, row)


if __name__ == "__main__":
    main()
