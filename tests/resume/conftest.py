"""One small model, and runs of it that ended or were killed, for all files of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune.checkpoint import reload
from llmprune.checkpoint.draft import JOURNAL, WORK
from tests import tiny
from tests.resume.children import BLOCKS, WANDA, Process, References, loads


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As many as the children have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Process:
    return Process(tmp_path_factory.mktemp("notes"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of six blocks whose inputs, outputs and blocks all differ in scale."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny.config("llama")
    config.num_hidden_layers = BLOCKS
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for number, parameter in enumerate(made.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=0.1 + 0.02 * number)
    made.save_pretrained(folder, max_shard_size="60KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def references(model: Path, process: Process, tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("references"), model, process)


@pytest.fixture(scope="session")
def begun(
    model: Path, process: Process, references: References, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was killed half-way; not to be gone on with."""
    out = tmp_path_factory.mktemp("begun") / "out"
    assert process(model, out, WANDA, die_at=references(WANDA)[1] // 4, resume=False) is None
    assert 2 <= len((out / WORK / JOURNAL).read_text().splitlines()) <= BLOCKS
    return out


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "check", loads)
