"""Several processes write what one writes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from tests import mixtures
from tests.ranks.children import Ranks
from tests.test_mtp_heads import with_heads

TEXT = {"samples": 140, "length": 64}  # five batches, so that shares differ
FEW = {"samples": 40, "length": 64}  # two batches, and some experts that they hardly reach
UNITS: dict[str, Any] = {"sparsity": 0.3, "pattern": {"name": "units", "multiple": 1}, "layout": "per_layer"}
BLOCKS: dict[str, Any] = {"pattern": "blocks", "sparsity": 0.34}
SAME: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda"},
    "wanda, layer by layer": {"method": "wanda", "propagation": "layer"},
    "flap": {"method": "flap", **UNITS},
    "cfsp": {"method": "cfsp", **UNITS},
    "owl": {"method": "wanda", "allocation": "owl"},
    "global": {"method": "wanda", "allocation": "global"},
    "best": {"method": "wanda", "allocation": "best"},
    "search": {
        "method": "wanda",
        "allocation": {"name": "search", "rounds": 1, "generations": 2, "offspring": 5, "tokens": 128},
        "calibration": {"samples": 70, "length": 64},
    },
    "sleb": {**BLOCKS, "allocation": "sleb"},
    "shortgpt": {**BLOCKS, "allocation": "shortgpt"},
    "mixture, wanda": {"method": "wanda", "calibration": FEW},
    "mixture, wanda, layer by layer": {"method": "wanda", "propagation": "layer", "calibration": FEW},
    "mixture, reap": {"method": "reap", "sparsity": 0.25, "calibration": FEW},
    "drafting mixture, reap": {"method": "reap", "sparsity": 0.25, "calibration": FEW},
}
NEAR: dict[str, dict[str, Any]] = {
    "sparsegpt": {"method": "sparsegpt"},
    "sparsegpt to the dense outputs": {"method": "sparsegpt", "target": "dense"},
    "admm": {"method": {"name": "admm", "damping": "held_out"}},
    "flap, refitted": {"method": "flap", "repair": "affine", **UNITS},
    "span": {**BLOCKS, "allocation": "shortgpt", "repair": "span"},
    "mixture, sparsegpt": {"method": "sparsegpt", "calibration": FEW},
}


@pytest.fixture(scope="module")
def pruned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, by how many processes wrote them; made once for all workers of the tests."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "by-ranks"
    with FileLock(f"{root}.lock"):
        if not (root / "made").exists():
            _prune(root, model)
            (root / "made").touch()
    return root


def _prune(root: Path, model: Path) -> None:
    (root / "launches").mkdir(parents=True)
    ranks = Ranks(root / "launches")
    models = {
        "mixture": mixtures.save("mixtral", root / "mixture", num_local_experts=32),
        "drafting mixture": with_heads(mixtures.save("deepseek_v3", root / "plain"), root / "drafting"),
    }
    for count in (1, 2):
        prune_all(ranks, count, SAME | NEAR, model, models, root)


def prune_all(
    ranks: Ranks,
    count: int,
    recipes: dict[str, dict[str, Any]],
    dense: Path,
    others: dict[str, Path],
    root: Path,
) -> None:
    """Let so many processes prune by every recipe, each into its folder; a name may begin with its model."""
    asked = [
        {
            "model": others.get(name.partition(",")[0], dense),
            "calibration": TEXT,
            **recipe,
            "out": root / str(count) / name,
        }
        for name, recipe in recipes.items()
    ]
    assert ranks(*asked, count=count) == [["done"] * count] * len(recipes)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("name", SAME)
def test_vectors_give_the_same_bytes(pruned: Path, name: str) -> None:
    one, two = (sorted((pruned / count / name).glob("*.safetensors")) for count in "12")
    assert [file.name for file in one] == [file.name for file in two] != []
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", NEAR)
def test_matrices_give_nearly_the_same_weights(pruned: Path, name: str) -> None:
    one, two = (tensors(pruned / count / name) for count in "12")
    assert one.keys() == two.keys()
    for key, weight in one.items():
        assert bool(((weight == 0) == (two[key] == 0)).all())
        assert float((weight - two[key]).abs().max()) < 1e-4


def test_candidates_are_measured_on_different_ranks(pruned: Path) -> None:
    def walks(launch: int, rank: int) -> Counter[str]:
        said = pruned / "launches" / f"launch-{launch}" / f"walks-{rank}"
        return Counter(said.read_text().splitlines())

    alone, first, second = walks(1, 0), walks(2, 0), walks(2, 1)
    trials = {label for label in alone if label.startswith("trying ")}
    assert all(first[label] + second[label] == alone[label] for label in trials)
    assert trials & first.keys() and trials & second.keys()
    for label in ("pruning sites one by one", "measuring mutations"):
        assert first[label] == second[label] == alone[label] > 0


def test_the_first_rank_alone_speaks(ranks: Ranks, model: Path, tmp_path: Path) -> None:
    ranks({"model": model, "method": "wanda", "calibration": TEXT, "out": tmp_path / "out"})
    first, other = (sorted(ranks.folder.glob(f"launch-*/log-{rank}"))[-1].read_text() for rank in (0, 1))
    assert "pruning: 3/3" in first
    assert "pruning" not in other
