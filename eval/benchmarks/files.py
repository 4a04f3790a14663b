"""The tables of files at equal bytes, from what `equal_bytes.py` measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cells
from cells import Row
from table import Table, rows

# What stands in the README of the forms that `equal_bytes.py` measures.
FORMS = {
    "as it is, f16": "dense-f16",
    "as it is, q8_0": "dense-q8_0",
    "as it is, q4_0": "dense-q4_0",
    "`small`, q8_0": "small-q8_0",
    "`smaller`, q8_0": "smaller-q8_0",
    "`small-english`, q8_0": "small-english-q8_0",
    "a quarter of the blocks, taught, q8_0": "depth-25-healed-q8_0",
    "vocabulary of 32,256, q8_0": "vocabulary-q8_0",
    "vocabulary of 65,536, q8_0": "vocabulary-64k-q8_0",
}


@dataclass(frozen=True)
class Both:
    """Files of two models beside each other, a line a form."""

    lines: dict[str, str]
    """What is said of a form, and its row."""

    columns: tuple[Callable[[Row], str], ...]
    models: tuple[str, ...]
    head: str

    def text(self) -> str:
        """In Markdown; a form that was measured of no model is left out."""
        known = [rows("equal_bytes", model=model) for model in self.models]
        rule = "|" + "---|" * len(self.head.split("|"))
        lines = []
        for said, name in self.lines.items():
            if not any(name in found for found in known):
                continue
            both = [cell for one in known for cell in self._of(name, one)]
            lines.append("| " + " | ".join([said, *both]) + " |")
        return "\n".join([f"| {self.head} |", rule, *lines])

    def _of(self, name: str, known: dict[str, Row]) -> list[str]:
        """The cells of a file; a pruned model was asked its questions before it was quantised."""
        if name not in known:
            return [""] * len(self.columns)
        whole = name if name.startswith("dense") else name.replace("-q8_0", "-f16")
        row = {"sharp": known[whole].get("sharp")} | known[name]
        return [column(row) for column in self.columns]


def of_files(model: str) -> Table:
    """All files of one model."""
    names = [name for name in rows("equal_bytes", model=model)]
    head = "file | size | decode | prefill | KL | same token | bits per byte, over dense f16 | `sharp` kept"
    columns = (
        *(cells.file_size, cells.speed("decode"), cells.speed("prefill")),
        *(cells.divergence_known, cells.same_token, cells.bits_over_dense, cells.points_kept),
    )
    return Table(("equal_bytes",), head, columns, {f"`{name}`": [name] for name in sorted(names)}, model)


FIRST = Both(
    FORMS,
    (cells.file_size, cells.divergence_known, cells.same_token, cells.points_kept),
    ("smollm2-135m", "qwen2.5-coder-0.5b"),
    "file | SmolLM2-135M | KL | same token | `sharp` | Qwen2.5-Coder-0.5B | KL | same token | `sharp`",
)
