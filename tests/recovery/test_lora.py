"""Adapters learn from the text, follow the blocks' influence, and leave sizes and zeros alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import prune, recover
from llmprune.checkpoint import reload
from llmprune.checkpoint.draft import STATE, WORK
from llmprune.checkpoint.opened import Opened
from llmprune.errors import JobError
from llmprune.training import steps as training
from llmprune.training.steps import Training
from tests import tiny
from tests.recovery.test_reconstruct import PADDED, PRUNED, tensors
from tests.test_families import check_here

pytest.importorskip("peft", reason="needs peft: pip install llmprune[recover]")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
HOW = {"name": "lora", "epochs": 6, "learning_rate": 1e-2, "rank": 4}


@pytest.fixture
def pruned(checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small pruned checkpoint with a text of 8 windows."""
    monkeypatch.setattr(reload, "check", check_here)
    asked = PRUNED["units with biases"] | {"calibration": {"samples": 8, "length": 32}}
    prune(checkpoints("llama"), asked, out=tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("pruned", ["units with biases", "2:4", "padded"])
def test_the_loss_falls_and_sizes_and_zeros_stay(
    pruned: str, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "check", check_here)
    asked = {**PRUNED, "padded": PADDED}[pruned] | {"calibration": {"samples": 16, "length": 32}}
    prune(checkpoints("llama"), asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW)
    assert report.recovery is not None
    losses, ranks = report.recovery["losses"], report.recovery["ranks"]
    assert len(losses) == 6 * 8
    assert sum(losses[-8:]) < sum(losses[:8])
    assert len(ranks) == 3
    assert min(ranks) >= 1
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "out-recovered")
    assert {k: t.shape for k, t in before.items()} == {k: t.shape for k, t in after.items()}
    if pruned in ("2:4", "padded"):
        assert all(((t == 0) <= (after[key] == 0)).all() for key, t in before.items() if t.ndim == 2)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out-recovered")


def test_a_checkpoint_in_half_precision_is_checked_as_it_was_stored(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "check", check_here)
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(checkpoints("llama"), dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(checkpoints("llama")).save_pretrained(half)
    asked = PRUNED["2:4"] | {"calibration": {"samples": 4, "length": 32}}
    prune(half, asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW, dtype="float32")
    assert report.reload is not None and report.reload["compared"] == "logits"
    assert {t.dtype for t in tensors(tmp_path / "out-recovered").values()} == {torch.bfloat16}


def test_adapters_need_no_row_for_a_family(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "check", check_here)
    asked = PRUNED["2:4"] | {"calibration": {"samples": 4, "length": 32}}
    prune(checkpoints("olmo"), asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW)
    assert report.recovery is not None and len(report.recovery["losses"]) == 6 * 2


def require_same(cut: Path, whole: Path) -> None:
    """Both hold the same files, with the same bytes where these are weights."""
    assert {path.name for path in cut.iterdir()} == {path.name for path in whole.iterdir()}
    for file in whole.glob("*.safetensors"):
        assert (cut / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("save_every", "first"), [(0.0, 5), (60.0, 0)])
def test_a_training_that_was_cut_off_goes_on_where_it_was_kept(
    save_every: float, first: int, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, steps = pruned.with_name("whole"), pruned.with_name("cut"), []
    reference = recover(pruned, HOW, out=whole)
    step = Training._step

    def until_the_sixth(self: Training, *rest: Any) -> float:
        if len(self.losses) == 5:
            raise KeyboardInterrupt
        return step(self, *rest)

    def noted(self: Training, *rest: Any) -> float:
        steps.append(len(self.losses))
        return step(self, *rest)

    monkeypatch.setattr(training, "SAVE_EVERY", save_every)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_step", until_the_sixth)
        recover(pruned, HOW, out=cut)
    monkeypatch.setattr(Training, "_step", noted)
    report = recover(pruned, HOW, out=cut, resume=True)
    assert steps == list(range(first, 6 * 4))
    assert report.recovery is not None and reference.recovery is not None
    assert report.recovery["losses"] == reference.recovery["losses"]
    require_same(cut, whole)


@pytest.mark.slow
def test_killed_while_it_trains_it_goes_on_to_the_same_bytes(pruned: Path) -> None:
    whole, cut = pruned.with_name("whole"), pruned.with_name("cut")
    recover(pruned, HOW, out=whole)
    code = (
        "from llmprune import recover; from llmprune.training import steps; steps.SAVE_EVERY = 0.0; "
        f"recover({str(pruned)!r}, {HOW!r}, out={str(cut)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as started:
        while started.poll() is None and not (cut / WORK / STATE).exists():
            time.sleep(0.01)
        started.kill()
    assert started.returncode == -signal.SIGKILL, started.communicate()
    assert not (cut / "config.json").exists()
    recover(pruned, HOW, out=cut, resume=True)
    require_same(cut, whole)


def test_a_loss_that_is_no_number_any_more_is_a_sentence(pruned: Path) -> None:
    said = r"the loss of step \d+ is nan; start again with a lower learning rate"
    with pytest.raises(JobError, match=said):
        recover(pruned, HOW | {"learning_rate": 1e30}, out=pruned.with_name("nan"))


def test_no_memory_for_a_step_is_a_sentence(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: torch.Tensor) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "backward", full)
    with pytest.raises(JobError, match="a step of 2 x 32 tokens; start again with a smaller batch"):
        recover(pruned, HOW, out=pruned.with_name("full"))


def test_a_model_that_does_not_fit_is_refused(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opened, "fits_whole", lambda model: False)
    with pytest.raises(JobError, match="use reconstruct, which needs one block at a time"):
        recover(pruned, HOW, out=pruned.with_name("large"))
