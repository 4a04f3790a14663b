"""Which tokens stay: those that shorten the text most, then those that are merged first.

Tokens go one by one, always the one whose going costs the text least. Its parts then stand in its place, so
they are used more than before. A token can go only after all that are made of it, so that what is left can
always be encoded.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from typing_extensions import TypedDict  # Python 3.11's own cannot be checked by pydantic

Parts = Mapping[int, tuple[int, ...]]


class VocabularyRecord(TypedDict):
    """Rows of the vocabulary before and after, and the tokens of the text that they were chosen on."""

    rows_before: int
    rows_after: int
    text: str | None
    text_tokens_before: int | None
    text_tokens_after: int | None


@dataclass(frozen=True)
class Kept:
    """The rows of a vocabulary that stay, ascending, out of so many."""

    rows: tuple[int, ...]
    total: int
    text_tokens: int | None = None
    """Tokens of the text that they were chosen on; None without a text."""

    unlisted: Mapping[str, int] = field(default_factory=dict)
    """Tokens that tokenizer.json lacks, and transformers adds when it loads it."""

    @cached_property
    def new(self) -> dict[int, int]:
        """The new id of every token that stays, by its old one."""
        return {row: number for number, row in enumerate(self.rows)}


def closed(tokens: Iterable[int], parts: Parts) -> set[int]:
    """These tokens with all that they are made of."""
    found: set[int] = set()
    waiting = list(tokens)
    while waiting:
        token = waiting.pop()
        if token not in found:
            found.add(token)
            waiting += parts.get(token, ())
    return found


def ordered(uses: Sequence[int], parts: Parts, ranks: Mapping[int, int], needed: set[int]) -> list[int]:
    """All rows, the most wanted first; any number of the first ones that covers `needed` can be kept.

    Args:
        uses: how often the text uses each row.
        parts: what each token is made of; rows that no text can use are missing.
        ranks: of the merges that make the tokens; of unused ones, the highest go first.
        needed: rows that stay in any case, closed under `parts`.
    """
    used = list(uses)
    whole = Counter(part for token in parts for part in parts[token])  # how many tokens are made of each

    def cost(row: int) -> tuple[bool, int, int, int]:
        return row in parts, used[row], -ranks.get(row, len(used) + len(ranks)), -row

    free = [(cost(row), row) for row in range(len(used)) if row not in needed and not whole[row]]
    heapq.heapify(free)
    gone: list[int] = []
    while free:
        _, row = heapq.heappop(free)
        gone.append(row)
        for part in parts.get(row, ()):
            used[part] += used[row]
            whole[part] -= 1
            if not whole[part] and part not in needed:
                heapq.heappush(free, (cost(part), part))
    return sorted(needed) + gone[::-1]
