"""Several processes teach a model as one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.families import sweep
from tests.ranks.children import Asked, Ranks
from tests.ranks.test_ends import written

TEXT = {"samples": 48, "length": 32}
HOW = {"name": "distill", "tokens": 1024, "batch_tokens": 128, "learning_rate": 1e-3, "products": "float32"}


ADAPTERS = HOW | {"adapters": 2}


@pytest.fixture(scope="module")
def taught(ranks: Ranks, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recovered models, by how many processes taught them; `sharded` by FSDP2 where two did."""
    root = tmp_path_factory.mktemp("taught")
    half = shutil.copytree(model, root / "dense")  # what trains is judged and written as it rounds to
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(half)
    prune = {"model": half, "method": "magnitude", "out": root / "pruned"}
    for count, sharded in ((1, False), (2, False), (2, True)):
        asked: list[Asked] = [prune] if count == 1 else []
        asked += [
            {"model": root / "pruned", "how": how, "calibration": TEXT, "sharded": sharded}
            | {"out": root / name / ("sharded" if sharded else str(count))}
            for name, how in (("weights", HOW), ("adapters", ADAPTERS))
        ]
        assert ranks(*asked, count=count) == [["done"] * count] * len(asked)
    return root


@pytest.mark.parametrize("trained", ["weights", "adapters"])
@pytest.mark.parametrize("way", ["2", "sharded"])
def test_losses_are_those_of_one(taught: Path, trained: str, way: str) -> None:
    one, two = (_recovery(taught / trained / of) for of in ("1", way))
    assert len(one["losses"]) == len(two["losses"]) == 8
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    looks = [[look["loss"] for look in found["held_out"]] for found in (one, two)]
    assert looks[0] == pytest.approx(looks[1], rel=1e-4)


@pytest.mark.parametrize("way", ["2", "sharded"])
def test_zeros_stay(taught: Path, way: str) -> None:
    pruned = {}
    for file in (taught / "pruned").glob("model-*.safetensors"):
        pruned |= load_file(file)
    for file in (taught / "weights" / way).glob("*.safetensors"):
        for key, weight in load_file(file).items():
            assert bool((weight[pruned[key] == 0] == 0).all())


@pytest.mark.parametrize("way", ["2", "sharded"])
def test_a_training_that_lost_a_rank_resumes(taught: Path, ranks: Ranks, tmp_path: Path, way: str) -> None:
    how = {"model": taught / "pruned", "how": HOW, "calibration": TEXT, "out": tmp_path / "out"}
    how |= {"sharded": way == "sharded"}
    said = ranks(how | {"ends": (1, "killed")})[0]
    assert said[0] == "JobError: process 1 of this run has ended or does not answer; rerun with --resume"
    assert list(tmp_path.glob("out/.unfinished/**/complete"))
    shares = {file.name for file in tmp_path.glob("out/.unfinished/**/optimizer_0/*.distcp")}
    assert shares == ({"__0_0.distcp", "__1_0.distcp"} if way == "sharded" else set())
    said = ranks(how | {"resume": True, "sharded": way == "2"})[0]
    assert said[0].startswith("RequestError: resume: the training was interrupted ")
    assert ranks(how | {"resume": True}) == [["done"] * 2]
    whole, cut = (_recovery(folder) for folder in (taught / "weights" / way, tmp_path / "out"))
    assert whole["losses"] == cut["losses"]
    assert written(tmp_path / "out") == written(taught / "weights" / way)


@pytest.mark.slow  # its family takes seconds to import
def test_the_blocks_of_a_decoder_among_other_parts_are_shared(ranks: Ranks, tmp_path: Path) -> None:
    sweep.model("gemma3").save_pretrained(tmp_path / "dense")
    tiny.tokenizer().save_pretrained(tmp_path / "dense")
    prune = {"model": tmp_path / "dense", "method": "magnitude", "out": tmp_path / "pruned"}
    how = {"model": tmp_path / "pruned", "how": HOW | {"tokens": 256}, "calibration": TEXT, "sharded": True}
    assert ranks(prune, how | {"out": tmp_path / "taught"}) == [["done"] * 2] * 2


def test_a_step_that_they_cannot_share_is_refused(taught: Path, ranks: Ranks, tmp_path: Path) -> None:
    how = HOW | {"batch_tokens": 96}
    asked = {"model": taught / "pruned", "how": how, "calibration": TEXT, "out": tmp_path / "out"}
    assert "a step has 3 windows of 32 tokens" in ranks(asked)[0][0]


def _recovery(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "llmprune_report.json").read_text())["recovery"]
    return found
