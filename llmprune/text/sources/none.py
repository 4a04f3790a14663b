"""No text at all, where pruning can do without: the default of `--pattern vocabulary`."""

from __future__ import annotations

from dataclasses import dataclass

from llmprune.errors import RequestError
from llmprune.text.sources.base import Access, Amount, TextSource
from llmprune.text.windows import Windows


@dataclass(frozen=True)
class Nothing(TextSource):
    """Holds no windows."""

    def windows(self, amount: Amount, access: Access) -> Windows:
        """Refuse to calibrate."""
        raise RequestError("calibration", "none was asked, and this needs a text; name one, such as builtin")
