"""A GPU that is not there."""

from __future__ import annotations

import pytest
from llmprune_kernels import acceleration

from tests.kernels.models import kernels_in


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a GPU were there and every kernel won: comparison and conversion are real, the clock is not."""
    monkeypatch.setattr(acceleration, "why_not", lambda device: None)
    monkeypatch.setattr(acceleration, "_microseconds", lambda layer, x: 1.0 if kernels_in(layer) else 2.0)
