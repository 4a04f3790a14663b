"""What `llmprune prune --target` reached, from the report of its folder.

Bits per byte are those of held-out windows of the calibration text, by which the command chooses; minutes are
of the whole command, candidates and judging included.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from against_authors import write
from cells import Row
from llmprune_eval import candidates
from table import MODEL, RESULTS, rows

from llmprune import report

HEAD = "model | asked | reached | chosen | bits per byte (dense) | the others | minutes"
MODELS = (MODEL, "qwen2.5-coder-0.5b")


class Targets:
    """What was asked of each model, a line each."""

    def text(self) -> str:
        """In Markdown."""
        lines = [_line(model, row) for model in MODELS for row in rows("targets", model=model).values()]
        return "\n".join([f"| {HEAD} |", "|" + "---|" * len(HEAD.split("|")), *lines])


def _line(model: str, row: Row) -> str:
    planned = row["planned"]
    tried = {one["name"]: one for one in planned["candidates"]}
    chosen = tried.pop(planned["chosen"])
    others = [
        f"{name} {_bits(one)} ({_share(planned, one)})" for name, one in tried.items() if "reached" in one
    ]
    bits = f"{_bits(chosen)} ({planned['dense_bits_per_byte']:.3f})"
    cells = [model, f"`{row['name']}`", _share(planned, chosen), planned["chosen"], bits, ", ".join(others)]
    return "| " + " | ".join([*cells, f"{planned['seconds'] / 60:.0f}"]) + " |"


def _share(planned: Any, one: Any) -> str:
    return f"{candidates.over_dense(planned, one['reached']):.4f}x"


def _bits(one: Any) -> str:
    return f"{one['bits_per_byte']:.3f}" if "bits_per_byte" in one else "not judged"


def main() -> None:
    """Keep what a finished folder's report says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="that `prune --target` wrote")
    parser.add_argument("model", help="whose results these are")
    asked = parser.parse_args()
    made = report.read(asked.folder)
    assert made is not None and made.planned is not None
    row = {"name": made.planned["target"], "planned": made.planned}
    write(RESULTS / asked.model / "targets", str(__doc__), asked.model, row)


if __name__ == "__main__":
    main()
