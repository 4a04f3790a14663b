"""A student with fewer tokens learns what the dense model says of the tokens that both have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune import prune, recover
from llmprune.errors import RequestError
from llmprune.training.teacher import Teacher
from llmprune.vocabulary.shared import shared
from tests import tiny
from tests.patterns.test_vocabulary import KEEP, asked, renumbering, save
from tests.recovery.test_distill import HOW, TEXT
from tests.recovery.test_reconstruct import PRUNED, tensors

RECOVERIES: dict[str, Any] = {
    "resident": HOW,
    "hidden": HOW | {"hidden": 0.5},
    "cached": HOW | {"teacher": "cached", "top": 32},
    "adapters": HOW | {"adapters": 4},
    "lora": {"name": "lora", "learning_rate": 1e-3, "epochs": 8, "products": "float32"},
    "reconstruct": "reconstruct",
}


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return save(tiny.config("llama"), tmp_path / "dense")


@pytest.fixture
def pruned(dense: Path, tmp_path: Path) -> Path:
    prune(dense, {**TEXT, "steps": [asked(), PRUNED["2:4"]]}, out=tmp_path / "out")
    return tmp_path / "out"


@torch.no_grad()
def by_hand(dense: PreTrainedModel, student: PreTrainedModel, ids: Tensor, new: dict[int, int]) -> float:
    """KL over the tokens that both have, looked up one by one."""
    old = {ours: theirs for theirs, ours in new.items()}
    known = sorted(old)
    translated = torch.tensor([[old[int(i)] for i in window] for window in ids])
    p = dense(translated).logits.double()[..., [old[i] for i in known]].softmax(-1)
    q = student(ids).logits.double()[..., known].softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_it_comes_closer_on_the_tokens_of_both(
    recovery: str, dense: Path, pruned: Path, tmp_path: Path
) -> None:
    calibration = {"samples": 64} if recovery == "reconstruct" else {}
    report = recover(pruned, RECOVERIES[recovery], calibration=calibration, out=tmp_path / "after")
    new = renumbering(dense, pruned)
    models = [AutoModelForCausalLM.from_pretrained(f).eval() for f in (dense, pruned, tmp_path / "after")]
    known = torch.tensor(sorted(new.values()))
    drawn = torch.randint(len(known), (4, 32), generator=torch.Generator().manual_seed(5))
    ids = known[drawn]
    assert by_hand(models[0], models[2], ids, new) < by_hand(models[0], models[1], ids, new)
    before, after = tensors(pruned), tensors(tmp_path / "after")
    assert all(after[key].shape == tensor.shape for key, tensor in before.items())
    assert all((after[key][tensor == 0] == 0).all() for key, tensor in before.items() if tensor.ndim == 2)
    assert report.recovery is not None and report.recovery["calibration"]["dataset"] == "builtin"


def test_a_cut_in_an_earlier_pruning_is_seen_in_the_tokenizers(dense: Path, tmp_path: Path) -> None:
    prune(dense, asked(), out=tmp_path / "cut")
    prune(tmp_path / "cut", PRUNED["2:4"] | TEXT, out=tmp_path / "out")
    recover(tmp_path / "out", HOW, baseline=str(dense), out=tmp_path / "after")
    with pytest.raises(RequestError, match="compares logits of one vocabulary"):
        recover(tmp_path / "out", "refine", baseline=str(dense), out=tmp_path / "refined")


@torch.no_grad()
def test_the_loss_is_that_of_the_common_tokens(dense: Path, pruned: Path) -> None:
    teacher, student = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (dense, pruned))
    new = renumbering(dense, pruned)
    common = shared({str(old): number for old, number in new.items()}, {str(old): old for old in new})
    ids = torch.tensor(list(new.values()))[torch.arange(48).view(2, 24)]
    found = float(Teacher(teacher, shared=common)(ids, student(ids)))
    assert found == pytest.approx(by_hand(teacher, student, ids, new), abs=1e-5)


def test_ids_without_a_token_in_the_dense_model_are_refused(pruned: Path, tmp_path: Path) -> None:
    common = shared({"a": 0, "b": 2}, {"a": 5, "b": 9})
    assert common.dense_ids(torch.tensor([[2, 0]])).tolist() == [[9, 5]]
    with pytest.raises(RequestError, match="no token of both models has the id 1"):
        common.dense_ids(torch.tensor([[0, 1]]))
    with pytest.raises(RequestError, match="ids from"):
        recover(pruned, HOW, tokens=torch.full((8, 32), KEEP), out=tmp_path / "after")
    assert not (tmp_path / "after").exists()
