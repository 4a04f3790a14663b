"""Zeros of a pruned model survive trainers that know nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from llmprune import KeepZeros, prune
from tests import tiny
from tests.recovery.test_reconstruct import PRUNED

TEXT = {"calibration": {"samples": 4, "length": 32}}
MASK = PRUNED["2:4"]
UNEVEN = PRUNED["units without"] | {
    "allocation": {"name": "profile", "blocks": [0.2, 0.4, 0.6]},
    "layout": "per_layer",
}
ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(3, tiny.VOCABULARY, (40, 16), generator=torch.Generator().manual_seed(0))
]


pytestmark = pytest.mark.usefixtures("check_in_process")


def arguments(folder: Path, kind: Any = TrainingArguments) -> Any:
    return kind(
        output_dir=str(folder),
        max_steps=20,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def require_kept(model: Any, before: dict[str, torch.Tensor]) -> None:
    """Zeros are where they were, and everything else has moved."""
    after = model.state_dict()
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    for name, tensor in before.items():
        assert (after[name][tensor == 0] == 0).all() or tensor.ndim < 2
    moved = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert len(moved) > len(before) / 2


@pytest.mark.parametrize("asked", [MASK, UNEVEN], ids=["2:4", "per_layer"])
def test_zeros_and_sizes_survive_transformers_trainer(
    asked: dict[str, Any], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), asked | TEXT, out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, arguments(tmp_path), train_dataset=ROWS, callbacks=[KeepZeros()]).train()
    require_kept(model, before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("asked", [MASK, UNEVEN], ids=["2:4", "per_layer"])
def test_zeros_and_sizes_survive_trl(
    asked: dict[str, Any], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl", reason="needs trl: pip install trl")
    datasets = pytest.importorskip("datasets")
    prune(checkpoints("llama"), asked | TEXT, out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = datasets.Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in ROWS])
    trl.SFTTrainer(
        model,
        arguments(tmp_path, trl.SFTConfig),
        train_dataset=rows,
        processing_class=tiny.tokenizer(),
        callbacks=[KeepZeros()],
    ).train()
    require_kept(model, before)


def test_gradients_of_removed_weights_do_not_count_in_the_norm() -> None:
    layer = nn.Linear(4, 3, bias=False)
    layer.weight.data[:, :2] = 0
    keeping = KeepZeros()
    keeping.watch(layer)
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad[:, :2] == 0).all() and (layer.weight.grad[:, 2:] == 1).all()


def test_an_adapter_that_begins_with_zeros_trains() -> None:
    layer = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    keeping = KeepZeros()
    keeping.watch(layer)
    layer.weight.data.fill_(1)
    keeping.restore(layer)
    assert (layer.weight == 1).all()
