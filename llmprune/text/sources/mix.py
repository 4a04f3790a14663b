"""A mix of texts, each with its number of windows: `a.parquet:512,b.jsonl:256,self:128`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from llmprune.paths import existing
from llmprune.text import sources
from llmprune.text.sources.base import Access, Amount, TextSource
from llmprune.text.windows import Windows

PART = re.compile(r"(.+):([1-9][0-9]*)")


@dataclass(frozen=True)
class Mix(TextSource):
    """In random order. The numbers are shares where a number of samples is asked besides."""

    text_column: str | None = None
    """The column that holds the text, of those that are tables; by default, what each names."""

    @classmethod
    def matches(cls, dataset: str) -> bool:
        """Whether every part has its number, and it is not the path of one text."""
        return all(map(PART.fullmatch, _words(dataset))) and not existing(dataset)

    @property
    def needs_whole_model(self) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(text.needs_whole_model for text, _ in self._parts)

    @property
    def forward_passes(self) -> int:
        """Of the part that takes most."""
        return max(text.forward_passes for text, _ in self._parts)

    @property
    def own_samples(self) -> int:
        """All parts' numbers together."""
        return sum(number for _, number in self._parts)

    def windows(self, amount: Amount, access: Access) -> Windows:
        """Return the windows of all parts, shuffled."""
        found = [
            text.windows(replace(amount, samples=count), access)
            for (text, _), count in zip(self._parts, self._counts(amount.samples), strict=True)
            if count
        ]
        order = torch.Generator().manual_seed(amount.seed)
        tokens = torch.cat([part.tokens for part in found])
        tokens = tokens[torch.randperm(len(tokens), generator=order)]
        return Windows(tokens, self.dataset, amount.seed, parts=tuple(found))

    @property
    def _parts(self) -> list[tuple[TextSource, int]]:
        found = []
        for word in _words(self.dataset):
            matched = PART.fullmatch(word)
            assert matched is not None
            name, number = matched.groups()
            named = self.text_column and "text_column" in sources.source_class(name).option_names()
            options = {"text_column": self.text_column} if named else {}
            found.append((sources.for_calibration(name, options), int(number)))
        return found

    def _counts(self, samples: int) -> list[int]:
        """The windows of every part: whole numbers in proportion, the largest rests rounded up."""
        exact = [samples * number / self.own_samples for _, number in self._parts]
        counts = [int(share) for share in exact]
        by_rest = sorted(range(len(exact)), key=lambda part: counts[part] - exact[part])
        for part in by_rest[: samples - sum(counts)]:
            counts[part] += 1
        return counts


def _words(dataset: str) -> list[str]:
    return [word.strip() for word in dataset.split(",")]
