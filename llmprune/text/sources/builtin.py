"""Python's own language reference, which `help()` shows: no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmprune.text.sources.base import Documents, Half


@dataclass(frozen=True)
class Builtin(Documents):
    """Every other section calibrates, and those between evaluate."""

    evaluation_split: ClassVar = "evaluation half"

    def documents(self, half: Half) -> list[str]:
        """Sections quote one another; a paragraph counts where it stands first, so the halves share none."""
        from pydoc_data.topics import topics

        seen: set[str] = set()
        sections = []
        for name in sorted(topics):
            own = [part for part in topics[name].split("\n\n") if part.strip() not in seen]
            seen |= {part.strip() for part in own}
            sections.append("\n\n".join(own))
        return sections[0 if half == "calibration" else 1 :: 2]
