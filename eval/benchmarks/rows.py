"""Measure recipes as rows: WikiText-2 perplexity, and the divergence on held-out windows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from against_authors import calibration_tokens, perplexity_of, tokens_of, write
from held_out import compared, windows
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmprune
from llmprune.report import Report

Recipe = dict[str, Any]


class Measuring:
    """One model and the texts that its rows share.

    Calibration and evaluation windows are those of `against_authors.py`; of the windows that choose
    (`held_out.py`), 8 of C4 and the 6 of Wikipedia, each of 1024 tokens.
    """

    def __init__(self, model: Path, shared: Path, *, test: bool = True) -> None:
        self.model = model
        tokenizer = AutoTokenizer.from_pretrained(model)
        self._calibration = calibration_tokens(str(model), shared)
        self._test = tokens_of(shared, "test", tokenizer) if test else None
        self.dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        held = {"choosing": True, "count": 8, "length": 1024}
        self._held = {name: windows(shared, name, tokenizer, **held) for name in ("c4", "wikipedia")}

    def row(self, asked: Recipe, shape: tuple[int, int] | None = None) -> tuple[dict[str, Any], Report]:
        """Prune as a recipe asks, and measure; calibrate on all windows or on the first tokens, so shaped."""
        tokens = self._calibration
        if shape is not None:
            tokens = tokens.flatten()[: shape[0] * shape[1]].reshape(shape)
        out = Path(tempfile.mkdtemp()) / "out"
        try:
            report = llmprune.prune(self.model, asked, tokens=tokens, out=out)
            pruned = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=True)
            return self._figures(pruned.eval(), report), report
        finally:
            shutil.rmtree(out.parent)

    def perplexity(self, model: Any) -> dict[str, float]:
        """On the test text, unless that is left out."""
        return {} if self._test is None else {"perplexity": perplexity_of(model, self._test)}

    def _figures(self, pruned: Any, report: Report) -> dict[str, Any]:
        floor = report.time["forward_floor_s"]
        row = {
            **self.perplexity(pruned),
            "parameters": report.totals["parameters_after"],
            "sparsity": report.totals["sparsity"],
            "seconds": report.time["total_s"],
            "ratio": report.time["total_s"] / floor if floor else None,
        }
        for text, held in self._held.items():
            found = compared(self.dense, pruned, held)
            row[f"kl_{text}"] = [one.kl / one.predictions for one in found]
            row[f"top1_{text}"] = sum(one.same for one in found) / sum(one.predictions for one in found)
        return row | {"versions": report.versions}


def measure(
    about: str, out: Path, names: list[str], measuring: Measuring, row_of: Callable[[str], Any]
) -> None:
    """Measure the rows that are not there yet."""
    for name in names:
        if not (out / f"{name}.json").exists():
            row = {"name": name, **row_of(name)}
            print(name, row.get("perplexity"), flush=True)
            write(out, about, str(measuring.model), row)
