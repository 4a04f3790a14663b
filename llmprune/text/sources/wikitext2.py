"""WikiText-2, raw (Merity et al., 2016, arXiv:1609.07843): good and featured articles of Wikipedia."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmprune.text.sources.base import Documents, Half
from llmprune.text.tables import streamed

# Pinned, so that the same name means the same text on every machine.
DATA: dict[str, Any] = {
    "path": "Salesforce/wikitext",
    "name": "wikitext-2-raw-v1",
    "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
}
SPLITS: dict[Half, str] = {"calibration": "train", "evaluation": "test"}


@dataclass(frozen=True)
class WikiText2(Documents):
    """The training split calibrates, and the test split evaluates."""

    def documents(self, half: Half) -> Iterator[str]:
        """Line by line."""
        return streamed({**DATA, "split": SPLITS[half]}, "text", self.dataset)
