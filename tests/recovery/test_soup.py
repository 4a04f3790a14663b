"""The average of checkpoints with one mask is their mean; others are refused; `distill` can end in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmprune import prune, recover
from llmprune.errors import JobError, RequestError
from llmprune.training.trainer import _Trainer
from tests import tiny
from tests.recovery.test_distill import HOW, TEXT, require_same
from tests.recovery.test_reconstruct import PRUNED, tensors

pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def pruned(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    prune(checkpoints("llama"), PRUNED["2:4"] | TEXT, out=tmp_path / "pruned")
    return tmp_path / "pruned"


@pytest.fixture
def members(pruned: Path, tmp_path: Path) -> list[Path]:
    """A pruned folder, and what three trainings made of it."""
    for seed in range(3):
        recover(pruned, HOW | {"tokens": 256, "seed": seed}, out=tmp_path / f"{seed}")
    return [pruned, *(tmp_path / f"{seed}" for seed in range(3))]


def soup(members: list[Path], **options: Any) -> dict[str, Any]:
    how = {"name": "soup", "members": [str(member) for member in members[1:]], **options}
    record = recover(members[0], how, out=members[0].with_name("soup")).recovery
    assert record is not None
    return dict(record)


def test_the_average_is_the_mean_and_keeps_zeros(members: list[Path]) -> None:
    record = soup(members)
    found = tensors(members[0].with_name("soup"))
    parts = [tensors(member) for member in members[1:]]
    for key, tensor in found.items():
        assert torch.allclose(tensor, sum(part[key] for part in parts) / 3, atol=1e-6)
    assert all((found[key][t == 0] == 0).all() for key, t in tensors(members[0]).items() if t.ndim == 2)
    assert record["loss_after"] < record["loss_before"]
    assert len(record["member_losses"]) == 3


def test_a_greedy_average_is_no_worse_than_its_best_member(members: list[Path]) -> None:
    record = soup(members, choose="greedy")
    assert record["loss_after"] <= min(record["member_losses"]) + 1e-6
    assert set(record["averaged"]) <= {str(member) for member in members}


def test_another_mask_is_refused_and_its_first_layer_named(
    members: list[Path], checkpoints: tiny.Checkpoints
) -> None:
    other = members[0].with_name("other")
    prune(checkpoints("llama"), {"method": "magnitude", "pattern": "2:4"}, out=other)
    with pytest.raises(RequestError, match=r"recovery\.members: .*other differs .* of model\.layers\.0"):
        soup([*members, other])
    assert not members[0].with_name("soup").exists()


def test_one_member_is_refused(members: list[Path]) -> None:
    with pytest.raises(RequestError, match=r"recovery\.members: 1 were named"):
        soup(members[:2])


def test_an_average_that_is_no_better_is_refused(members: list[Path]) -> None:
    with pytest.raises(JobError, match="the average is no better than the start"):
        soup([members[0], members[0], members[0]])
    assert not members[0].with_name("soup").exists()


@pytest.mark.parametrize("adapters", [None, 4])
def test_a_soup_is_the_mean_of_its_members_or_the_best_of_them(adapters: int | None, pruned: Path) -> None:
    how = HOW | {"adapters": adapters}
    members = [
        recover(pruned, how | {"seed": seed}, out=pruned.with_name(f"member-{seed}")).recovery
        for seed in (0, 1)
    ]
    report = recover(pruned, how | {"soup": 2}, out=pruned.with_name("soup"))
    assert report.recovery is not None
    alone = [min(look["loss"] for look in member["held_out"]) for member in members if member]
    assert report.recovery["member_losses"] == pytest.approx(alone, abs=1e-6)
    first, second, found = (tensors(pruned.with_name(name)) for name in ("member-0", "member-1", "soup"))
    mean = {key: torch.stack([first[key], second[key]]).mean(0) for key in first}
    best = first if alone[0] <= alone[1] else second
    taken = mean if report.recovery["average_loss"] < min(alone) else best
    assert all(torch.equal(found[key], taken[key]) for key in found)
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_an_interrupted_soup_resumes_with_the_member_that_was_training(
    pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = HOW | {"soup": 2}
    recover(pruned, how, out=pruned.with_name("whole"))
    step, taken = _Trainer.training_step, [0]

    def until_the_second_member(self: _Trainer, *rest: Any, **named: Any) -> Any:
        taken[0] += 1
        if taken[0] == 40:
            raise KeyboardInterrupt
        return step(self, *rest, **named)

    monkeypatch.setattr(_Trainer, "training_step", until_the_second_member)
    with pytest.raises(KeyboardInterrupt):
        recover(pruned, how, out=pruned.with_name("cut"))
    recover(pruned, how, out=pruned.with_name("cut"), resume=True)
    assert taken[0] == 40 + 32  # the 32 windows of the first member are not read again
    require_same(pruned.with_name("cut"), pruned.with_name("whole"))
