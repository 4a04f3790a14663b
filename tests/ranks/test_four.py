"""Four processes write what one writes, and add up its Gram matrices; they take a minute on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import mixtures
from tests.ranks.children import Ranks
from tests.ranks.test_ends import written
from tests.ranks.test_results import SAME, TEXT, prune_all

pytestmark = pytest.mark.slow
EQUAL = ("wanda", "flap", "cfsp", "owl", "global", "best", "search", "mixture, wanda", "mixture, reap")
REFITTED: dict[str, dict[str, Any]] = {
    "sparsegpt": {"method": "sparsegpt"},
    "admm": {"method": "admm"},
}


@pytest.fixture(scope="module")
def pruned(ranks: Ranks, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results and Gram matrices, by how many processes wrote them."""
    root = tmp_path_factory.mktemp("pruned")
    mixture = mixtures.save("mixtral", root / "mixture", num_local_experts=32)
    equal = {name: SAME[name] | {"calibration": TEXT} for name in EQUAL}
    for count in (1, 4):
        (folder := root / str(count)).mkdir()
        refitted = {name: recipe | {"grams": folder / f"{name}.pt"} for name, recipe in REFITTED.items()}
        prune_all(ranks, count, equal | refitted, model, {"mixture": mixture}, root)
    return root


@pytest.mark.parametrize("name", EQUAL)
def test_four_write_the_bytes_of_one(pruned: Path, name: str) -> None:
    assert written(pruned / "1" / name) == written(pruned / "4" / name) != {}


@pytest.mark.parametrize("name", REFITTED)
def test_four_add_up_the_matrices_of_one(pruned: Path, name: str) -> None:
    one, four = (torch.load(pruned / count / f"{name}.pt") for count in "14")
    assert len(one) == len(four) == 4
    for matrix, other in zip(one, four, strict=True):
        # One process' float32 sums are 2e-6 off with so few distinct tokens; SmolLM2-135M's are 1e-7 apart.
        assert float((matrix - other).norm() / matrix.norm()) < 1e-5
