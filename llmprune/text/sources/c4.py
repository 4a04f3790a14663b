"""C4 (Raffel et al., 2020, arXiv:1910.10683): English pages of the web."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.text.chat import Conversation
from llmprune.text.sources.base import Documents, Half
from llmprune.text.tables import stream

# Pinned: the name must stand for the same text on every machine and at any time.
DATA = {"path": "allenai/c4", "revision": "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"}
FILES: dict[Half, str] = {
    "calibration": "en/c4-train.00000-of-01024.json.gz",
    "evaluation": "en/c4-validation.00000-of-00008.json.gz",
}


@dataclass(frozen=True)
class C4(Documents):
    """The first file of the training split for calibration, of the validation split for evaluation."""

    evaluation_split: ClassVar = "validation"

    def documents(self, half: Half) -> Iterator[str | Conversation]:
        """Yield the pages."""
        load_args = {**DATA, "data_files": {"train": FILES[half]}, "split": "train"}
        return stream(load_args, "text", self.dataset)
