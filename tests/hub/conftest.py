"""A finished folder, a Hub on loopback, and a process that pushes to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmprune
from tests import tiny
from tests.checkpoint.writable_hub import WritableHub
from tests.hub.worker import Worker, at_work


@pytest.fixture(scope="session")
def finished(checkpoints: tiny.Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned tiny model. Not to be written to."""
    out = tmp_path_factory.mktemp("pruned") / "small"
    ask = {"method": "magnitude", "pattern": "2:4"}
    llmprune.prune(checkpoints("llama"), ask, out=out)
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A pruned tiny model that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "small"))


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with at_work(tmp_path_factory.mktemp("hub") / "home", WritableHub()) as made:
        yield made


@pytest.fixture
def hub(worker: Worker) -> Iterator[WritableHub]:
    """The worker's Hub, without a fault and empty."""
    worker.hub.versioned.clear()
    worker.hub.objects.clear()
    yield worker.hub
    worker.hub.faults.clear()
    worker.hub.loses.clear()
