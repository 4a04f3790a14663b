"""Students that lose more weights on the way end with the share that was asked, better than at once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmprune import prune, recover
from llmprune.errors import JobError, RequestError
from llmprune.training import pace
from llmprune.training.gradual import END, Schedule
from llmprune.training.trainer import _Trainer
from tests import tiny
from tests.recovery.test_distill import HOW, TEXT, require_same
from tests.recovery.test_reconstruct import PRUNED, tensors

LITTLE: dict[str, Any] = {"method": "wanda", "sparsity": 0.25, **TEXT}
LONGER = HOW | {"tokens": 4096, "learning_rate": 3e-3}
SCHEDULE = {"to": 0.5, "steps": 3}


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def pruned(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    prune(checkpoints("llama"), LITTLE, out=tmp_path / "out")
    return tmp_path / "out"


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    return {key: t for key, t in tensors(folder).items() if "_proj" in key and t.ndim == 2}


@given(st.floats(0, 0.5), st.floats(0.55, 0.95), st.integers(1, 12), st.integers(20, 200))
def test_shares_rise_as_a_cubic(start: float, to: float, steps: int, training: int) -> None:
    shares = Schedule(to, steps).shares(start, training)
    last = max(shares)
    assert shares[last] == to and last == int(END * training) and len(shares) == steps
    for step, share in shares.items():
        if (done := round(step / last * steps)) * last == step * steps:
            assert share == pytest.approx(to + (start - to) * (1 - done / steps) ** 3)
    assert sorted(shares.values()) == list(shares.values()) and min(shares.values()) > start


@pytest.mark.parametrize(
    ("method", "regrow"), [("wanda", 0.1), ("magnitude", 0.0), ("sparsegpt", 0.1), ("admm", 0.0)]
)
def test_the_share_is_exact_and_better_than_at_once(
    method: str, regrow: float, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), LITTLE | {"method": method}, out=tmp_path / "out")
    report = recover(
        tmp_path / "out", LONGER | {"schedule": SCHEDULE | {"regrow": regrow}}, out=tmp_path / "more"
    )
    for key, matrix in matrices(tmp_path / "more").items():
        if method == "magnitude":
            assert int((matrix == 0).sum()) == round(0.5 * matrix.numel()), key
        else:
            assert ((matrix == 0).sum(1) == round(0.5 * matrix.shape[1])).all(), key
    record = report.recovery
    assert record is not None
    assert min(look["loss"] for look in record["held_out"][-3:]) < record["one_shot_loss"]
    zeros = sum(int((t == 0).sum()) for t in matrices(tmp_path / "more").values())
    assert report.totals["zero_parameters"] == zeros == sum(site.zeros for site in report.sites)
    assert report.totals["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_n_of_m_loses_one_more_of_every_group(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), PRUNED["2:4"] | {"pattern": "6:8"} | TEXT, out=tmp_path / "out")
    how = LONGER | {"schedule": {"to": 0.5, "steps": 2}}
    report = recover(tmp_path / "out", how, out=tmp_path / "more")
    assert any(matrices(tmp_path / "more"))
    for key, matrix in matrices(tmp_path / "more").items():
        assert ((matrix.reshape(-1, 8) == 0).sum(1) == 4).all(), key
    mark = json.loads((tmp_path / "more" / "config.json").read_text())["llmprune"]
    assert (mark["pattern"], mark["sparsity"]) == ("4:8", 0.5)
    assert report.recipe["pattern"] == "4:8" and {site.asked for site in report.sites} == {0.5}
    again = recover(tmp_path / "out", how, out=tmp_path / "more", resume=True)  # it is done already
    assert again == report


def test_weights_come_back_by_their_gradients(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two choices of masks, weights that were gone are there again."""
    gone, seen = [], {key for key, _ in matrices(pruned).items()}
    step = _Trainer.training_step

    def noted(self: _Trainer, model: Any, *rest: Any, **named: Any) -> Any:
        gone.append({key: (p == 0).clone() for key, p in model.named_parameters() if key in seen})
        return step(self, model, *rest, **named)

    monkeypatch.setattr(_Trainer, "training_step", noted)
    back = {}
    for regrow in (0.0, 0.5):
        gone.clear()
        how = LONGER | {"schedule": {"to": 0.5, "steps": 5, "regrow": regrow}}
        recover(pruned, how, out=pruned.with_name(f"more-{regrow}"))
        pairs = list(pairwise(gone))
        back[regrow] = sum(int((a[key] & ~b[key]).sum()) for a, b in pairs for key in seen)
    assert back[0.5] > 10 * back[0.0]


@pytest.mark.parametrize("cut", [4, 14])
def test_an_interrupted_schedule_resumes_to_the_same_bytes(
    cut: int, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = LONGER | {"schedule": {"to": 0.6, "steps": 4, "regrow": 0.2}}
    recover(pruned, how, out=pruned.with_name("whole"))
    step = _Trainer.training_step

    def until(self: _Trainer, *rest: Any, **named: Any) -> Any:
        if self.state.global_step == cut:
            raise KeyboardInterrupt
        return step(self, *rest, **named)

    monkeypatch.setattr(pace, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(pace, "SHARE", 1e9)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Trainer, "training_step", until)
        recover(pruned, how, out=pruned.with_name("cut"))
    recover(pruned, how, out=pruned.with_name("cut"), resume=True)
    require_same(pruned.with_name("cut"), pruned.with_name("whole"))


def refusal(folder: Path, calibration: Any = None, **options: Any) -> str:
    with pytest.raises(RequestError) as raised:
        recover(folder, HOW | options, out=folder.with_name("refused"), calibration=calibration)
    assert not folder.with_name("refused").exists()
    return str(raised.value)


def test_wrong_schedules_are_sentences(pruned: Path, checkpoints: tiny.Checkpoints) -> None:
    assert "0.2 was asked, and 0.25 of the weights are gone already" in refusal(pruned, schedule={"to": 0.2})
    assert "have room for 11" in refusal(pruned, schedule={"to": 0.5, "steps": 12})
    longer = {"calibration": {"length": 64, "samples": 4}, "schedule": {"to": 0.5, "steps": 8}}
    assert "have room for 5" in refusal(pruned, **longer, tokens=512)
    three = pruned.with_name("three")
    prune(checkpoints("llama"), {"method": "magnitude", "pattern": "3:4"}, out=three)
    assert "0.3 was asked, and 3:4 goes down to 0.25 or another" in refusal(three, schedule={"to": 0.3})
    assert "0.9 was asked, and 3:4 goes down to 0.75 or another" in refusal(three, schedule={"to": 0.9})
    assert "masks would change under adapters" in refusal(pruned, schedule=SCHEDULE, adapters=2)
    assert "masks would change under soup" in refusal(pruned, schedule=SCHEDULE, soup=2)
    assert "recovery.schedule.to" in refusal(pruned, schedule={"to": 1.5})
    units = pruned.with_name("units")
    prune(checkpoints("llama"), PRUNED["units without"] | TEXT, out=units)
    assert "a schedule removes single weights, and" in refusal(units, schedule=SCHEDULE)


def test_a_schedule_that_helped_nothing_is_refused(pruned: Path) -> None:
    with pytest.raises(JobError, match="better than as much removed at once"):
        recover(pruned, HOW | {"schedule": SCHEDULE, "learning_rate": 10.0}, out=pruned.with_name("more"))
    assert not pruned.with_name("more").exists()


def test_a_recipe_whose_schedule_cannot_work_is_refused_before_it_prunes(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked = LITTLE | {"recovery": HOW | {"schedule": {"to": 0.2}}}
    with pytest.raises(RequestError, match=r"0\.2 was asked, and 0\.25 of the weights are gone already"):
        prune(checkpoints("llama"), asked, out=tmp_path / "out")
    uneven = LITTLE | {"allocation": "owl", "recovery": HOW | {"schedule": SCHEDULE}}
    with pytest.raises(RequestError, match="the same share of every layer, and owl shared out what is gone"):
        prune(checkpoints("llama"), uneven, out=tmp_path / "out")
    units = PRUNED["units without"] | {"recovery": HOW | {"schedule": SCHEDULE}}
    with pytest.raises(RequestError, match="a schedule removes single weights"):
        prune(checkpoints("llama"), units | TEXT, out=tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []
