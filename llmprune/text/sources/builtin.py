"""Python's language reference, as shown by `help()`; it needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmprune.text.sources.base import Documents, Half


@dataclass(frozen=True)
class Builtin(Documents):
    """Every other section is for calibration, the rest for evaluation."""

    evaluation_split: ClassVar = "evaluation half"

    def documents(self, half: Half) -> list[str]:
        """Return the sections of one half, without paragraphs that occur in an earlier section."""
        from pydoc_data.topics import topics

        # Sections quote one another; a repeated paragraph would leak from one half into the other.
        seen: set[str] = set()
        sections = []
        for name in sorted(topics):
            own = [part for part in topics[name].split("\n\n") if part.strip() not in seen]
            seen |= {part.strip() for part in own}
            sections.append("\n\n".join(own))
        return sections[0 if half == "calibration" else 1 :: 2]
