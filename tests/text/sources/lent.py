"""What a run lends a source, as the tests lend it: nothing but what they name."""

from __future__ import annotations

from typing import Any

import pytest

from llmprune.text.sources.base import Access
from tests import tiny


def access(**lent: Any) -> Access:
    """All that is not named fails when it is asked for."""
    usual: dict[str, Any] = dict.fromkeys(("tokenizer", "whole_model", "store", "cache_key"), pytest.fail)
    return Access(**{**usual, "batch": 2, "vocabulary": tiny.VOCABULARY, **lent})
