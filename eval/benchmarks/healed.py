"""Prune, then let the dense model teach: perplexity and divergence before and after.

Pruned on the calibration windows of `against_authors.py`; taught on those, up to a third of the tokens asked,
and on C4 and Wikipedia (`held_out.py`) or one of these, in a fixed random order; a share of them chooses the
state that is kept.
`kl` is the mean KL divergence to the dense model on the windows of 1024 tokens that report, 8 of C4 and the 5
of Wikipedia (4 with Qwen's tokenizer), and on the first 8 of WikiText-2 test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from against_authors import FIXED, write
from held_out import compared, teaching, windows
from rows import Measuring
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmprune
from llmprune import report
from llmprune.recovery.distill import Distill, counted

TEXTS = ["c4", "wikipedia"]
KEPT = ("trained_tokens", "rate", "losses", "held_out", "computed_in", "time")
STARTS: dict[str, dict[str, Any]] = {
    "sparsegpt-2of4": {"method": "sparsegpt", "pattern": "2:4"},
    "admm-2of4": {"method": "admm", "pattern": "2:4"},
    "admm-50": {"method": "admm"},
    "sparsegpt-50": {"method": "sparsegpt"},
    "wanda-50": {"method": "wanda"},
    "wanda-2of4": {"method": "wanda", "pattern": "2:4"},
    "flap-30": {"method": "flap", "sparsity": 0.3, "repair": FIXED},
    "cfsp-30": {"method": "cfsp", "sparsity": 0.3, "repair": FIXED},
    "depth-20": {"method": "shortgpt", "pattern": "blocks", "sparsity": 0.2},
    "depth-20-span": {"method": "shortgpt", "pattern": "blocks", "sparsity": 0.2, "repair": "span"},
}


class Healing(Measuring):
    """Starts are pruned once, into a folder of their own; the named texts teach besides what calibrated."""

    def __init__(self, asked: argparse.Namespace) -> None:
        model, shared = asked.model, asked.shared
        super().__init__(model, shared, test=not asked.no_test)
        tokenizer = AutoTokenizer.from_pretrained(model)
        held = {"choosing": False, "count": 8, "length": 1024}
        self._held = {name: windows(shared, name, tokenizer, **held) for name in TEXTS}
        others = torch.cat([teaching(shared, name, tokenizer, 1024) for name in asked.teachers])
        if self._test is not None:
            self._held["wikitext"] = self._test[: 8 * 1024].reshape(8, 1024)
        self._pruned = asked.pruned
        self._others = _shuffled(others)

    def healed(self, name: str, how: dict[str, Any]) -> dict[str, Any]:
        """Prune unless that is done, recover, and measure both."""
        start = self._pruned / name
        if not (start / report.FILE).exists():
            llmprune.prune(
                self.model, STARTS[name], tokens=self._calibration, out=start, resume=start.exists()
            )
        with tempfile.TemporaryDirectory() as work:
            text = self._text(Distill(tokens=counted(how["tokens"])).samples(1024))
            told = llmprune.recover(start, how, tokens=text, out=Path(work, "out"))
            after = self._of(Path(work, "out"))
        done: Any = told.recovery
        kept = {key: done[key] for key in KEPT}
        return {"before": self._of(start), **after, **kept, "versions": told.versions}

    def _text(self, windows: int) -> Tensor:
        """So many windows, at most a third of them those that calibrated."""
        own = self._calibration[: windows // 3]
        return _shuffled(torch.cat([own, self._others[: windows - len(own)]]))

    def _of(self, folder: Path) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
        found: dict[str, Any] = {**self.perplexity(model.eval())}
        for text, held in self._held.items():
            pieces = compared(self.dense, model, held)
            found[f"kl_{text}"] = [one.kl / one.predictions for one in pieces]
        return found


def _shuffled(windows: Tensor) -> Tensor:
    return windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]


def main() -> None:
    """Measure the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    parser.add_argument("--pruned", type=Path, required=True, help="where the starts are kept")
    parser.add_argument("--rows", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--tokens", default="100k")
    parser.add_argument("--teachers", nargs="+", default=TEXTS, choices=TEXTS)
    parser.add_argument("--no-test", action="store_true", help="leave WikiText-2 test and perplexity out")
    parser.add_argument("--set", nargs="*", default=[], help="further options of distill, as key=value")
    arguments = parser.parse_args()
    healing = Healing(arguments)
    options = dict(pair.split("=") for pair in arguments.set)
    for name in arguments.rows:
        how = {"name": "distill", "tokens": arguments.tokens, **options}
        row = f"{name}-{arguments.tokens}" + "".join(f"-{key}-{value}" for key, value in options.items())
        row += "" if arguments.teachers == TEXTS else f"-from-{'-'.join(arguments.teachers)}"
        if not (arguments.out / f"{row}.json").exists():
            asked = {"asked": {**STARTS[name], "recovery": how}, "teachers": arguments.teachers}
            figures = {"name": row, **asked, **healing.healed(name, how)}
            print(row, figures["before"].get("perplexity"), figures.get("perplexity"), flush=True)
            write(arguments.out, str(__doc__), str(arguments.model), figures)


if __name__ == "__main__":
    main()
