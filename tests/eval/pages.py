"""Finished folders to tell of, what was measured of them, and a reader of pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from llmprune_eval.markup import EMPTY

from llmprune import prune, recover
from llmprune.checkpoint import reload
from llmprune.report import FILE as REPORT
from tests import tiny
from tests.reloading import check_here

UNITS = {"pattern": {"name": "units", "multiple": 8}, "sparsity": 0.4}
CALIBRATION = {"samples": 4, "length": 32}
RECIPES: dict[str, dict[str, Any]] = {
    "masked": {"method": "wanda", "pattern": "2:4"},
    "cut": {"method": "flap", **UNITS},
    "untexted": {"method": "magnitude", "sparsity": 0.5},
    "learned": {"method": {"name": "prunenet", "passes": 1}, "pattern": UNITS["pattern"], "sparsity": 0.1},
}


class Reader(HTMLParser):
    """Notes what a browser would load or run, and whether every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        outside = [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action") and v
        ]
        self.loaded += [target for target in outside if not target.startswith("#")]
        assert not [key for key in found if key.startswith("on")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished folders of real runs, and one of them recovered; not to be written to."""
    root = tmp_path_factory.mktemp("runs")
    source = tiny.save("llama", root / "dense")
    found = {name: root / name for name in RECIPES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "check", check_here)
        for name, asked in RECIPES.items():
            prune(source, asked | {"calibration": CALIBRATION}, out=found[name])
        recover(found["cut"], "reconstruct", out=root / "recovered")
    return found | {"recovered": root / "recovered"}


def judged(perplexity: float, speed: float | None = None, **others: Any) -> dict[str, Any]:
    """An evaluation such as `llmprune eval` and `llmprune bench` make."""
    text = {"dataset": "wikitext2", "length": 64, "windows": 8, "protocol": "8 windows of 64"}
    dense, pruned = ({"name": "m", "perplexity": [text | {"perplexity": p}]} for p in (10.0, perplexity))
    rates = [
        {"prefill_tokens_per_s": 100.0 * r, "decode_tokens_per_s": 10.0 * r} for r in (1.0, speed or 1.0)
    ]
    bench = {"bench": {"protocol": "batch 1, prompt 8", "models": rates}} if speed else {}
    return {"baseline": dense, "model": pruned | others} | bench


def recovered(name: str, losses: list[float]) -> dict[str, Any]:
    """What a recovery that trains tells."""
    text = {"dataset": "t", "samples": 4, "length": 32, "tokens": 128, "seed": 0, "sha256": "0"}
    return {"name": name, "calibration": text, "time": {"total_s": 1.0}, "losses": losses}


def copied(folder: Path, out: Path, **changes: Any) -> Path:
    """A folder with the same report but for some of its fields."""
    out.mkdir()
    known = json.loads((folder / REPORT).read_text())
    (out / REPORT).write_text(json.dumps(known | changes))
    return out
