"""WikiText-2, raw (Merity et al., 2016, arXiv:1609.07843): good and featured articles of Wikipedia."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmprune.text.chat import Conversation
from llmprune.text.sources.base import Documents, Half
from llmprune.text.tables import stream

# Pinned: the name must stand for the same text on every machine and at any time.
DATA = {
    "path": "Salesforce/wikitext",
    "name": "wikitext-2-raw-v1",
    "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
}
SPLITS: dict[Half, str] = {"calibration": "train", "evaluation": "test"}


@dataclass(frozen=True)
class WikiText2(Documents):
    """The training split for calibration, the test split for evaluation."""

    def documents(self, half: Half) -> Iterator[str | Conversation]:
        """Yield the lines."""
        return stream({**DATA, "split": SPLITS[half]}, "text", self.dataset)
