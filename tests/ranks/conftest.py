"""Processes that work together, and a model that they prune."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.ranks.children import Ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("launches"))


@pytest.fixture(scope="session")
def model(checkpoints: tiny.Checkpoints) -> Path:
    return checkpoints("llama")
