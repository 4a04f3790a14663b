"""Modules wait where a device map puts them, and what is computed does not depend on that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import AutoModelForCausalLM

from llmprune import load, prune, recover
from llmprune.checkpoint import placement
from llmprune.checkpoint.streamed import CheckpointStore
from llmprune.errors import RequestError
from llmprune.recipe import Recipe
from llmprune.run.asked import Run
from llmprune.run.job import Job, checkpoint_job
from tests import mixtures, tiny
from tests.ranks.test_ends import written
from tests.test_families import logits

pytestmark = pytest.mark.usefixtures("check_in_process")
TEXT = {"samples": 4, "length": 32}
PLACES: dict[str, str | int] = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


def job(model: Path, **how: Any) -> Job:
    return checkpoint_job(str(model), Recipe.parse({"method": "magnitude"}), Run(**how))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights that were read from files, by name."""
    names: list[str] = []
    own = CheckpointStore._read

    def reading(self: CheckpointStore, name: str) -> Tensor:
        names.append(name)
        return own(self, name)

    monkeypatch.setattr(CheckpointStore, "_read", reading)
    return names


@pytest.mark.parametrize("places", ["auto", PLACES], ids=["auto", "cpu and disk"])
def test_blocks_that_wait_in_memory_are_read_once(
    places: placement.Asked, checkpoints: tiny.Checkpoints, tmp_path: Path, reads: list[str]
) -> None:
    asked: dict[str, Any] = {"method": "wanda", "allocation": "best", "calibration": TEXT}
    prune(checkpoints("llama"), asked, out=tmp_path / "plain")
    first, second = (f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    assert min(reads.count(first), reads.count(second)) > 10
    reads.clear()
    prune(checkpoints("llama"), asked, out=tmp_path / "placed", device_map=places)
    assert reads.count(first) == 1
    assert (reads.count(second) == 1) == (places == "auto")
    assert written(tmp_path / "placed") == written(tmp_path / "plain")


@pytest.mark.parametrize(
    "recipe",
    [{"method": "sparsegpt"}, {"method": "reap", "sparsity": 0.25}, {"method": "wanda"}],
    ids=str,
)
def test_a_mixture_is_pruned_alike_wherever_it_waits(recipe: dict[str, Any], tmp_path: Path) -> None:
    model = mixtures.save("mixtral", tmp_path / "model", torch.bfloat16)
    for name, places in (("plain", None), ("placed", {"": "cpu"})):
        prune(model, recipe, calibration=TEXT, out=tmp_path / name, device_map=places)
    assert written(tmp_path / "placed") == written(tmp_path / "plain")


def test_a_plan_counts_what_waits_in_memory(checkpoints: tiny.Checkpoints) -> None:
    plain, held = (job(checkpoints("llama"), device_map=places) for places in (None, {"": "cpu"}))
    blocks = sum(p.numel() for block in plain.model.anatomy.blocks for p in block.parameters()) * 4
    assert held.plan.needed_bytes - plain.plan.needed_bytes == blocks
    assert held.plan.host_bytes - plain.plan.host_bytes == blocks


def test_auto_fills_what_the_run_leaves_free(checkpoints: tiny.Checkpoints) -> None:
    model = checkpoints("llama")
    plain = job(model).plan
    some = (plain.needed_bytes + 2 * plain.block_bytes) / placement.SPARE
    places = job(model, device_map="auto", max_memory=f"{some // 1000:.0f}KB").model.places
    assert places is not None
    assert {"cpu", "disk"} == set(places.values())
    assert placement.place_of("model.layers.2.mlp.up_proj.weight", places) == "disk"


@pytest.mark.parametrize("places", [PLACES, {"": "cpu"}], ids=["cpu and disk", "cpu"])
def test_a_model_is_loaded_where_a_map_puts_it(
    places: dict[str, str | int], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(places))
    model, _ = load(str(checkpoints("llama")), device_map=str(file))
    plain = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    assert model.model.layers[1].mlp.up_proj.weight.is_meta == (places is PLACES)
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize("name", ["distill", "reconstruct"])
def test_the_dense_model_teaches_from_where_it_waits(
    name: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), method="magnitude", out=tmp_path / "pruned")
    course = {"tokens": 512, "batch_tokens": 128, "learning_rate": 1e-3} if name == "distill" else {}
    how = {"name": name, **course}
    for out, places in (("plain", None), ("placed", PLACES)):
        recover(
            tmp_path / "pruned",
            how,
            out=tmp_path / out,
            calibration={"samples": 24, "length": 32},
            device_map=places,
        )
    assert written(tmp_path / "placed") == written(tmp_path / "plain")


WRONG: dict[str, tuple[object, str]] = {
    "no such module": (PLACES | {"model.layers.7": "cpu"}, "model.layers.7 was named, and the model has no"),
    "no such device": (PLACES | {"lm_head": "cuda:9"}, "'cuda:9' was asked, and torch finds cpu"),
    "no such accelerator": (PLACES | {"lm_head": 99}, "99 was asked, and torch finds cpu"),
    "a device that is none": (PLACES | {"lm_head": [1]}, "[1] was asked"),
    "two places": (PLACES | {"model": "cpu"}, "was named, and model too, which holds it"),
    "no place": ({"model": "cpu"}, "lm_head.weight is in none of the modules"),
    "a list": (["cpu"], "maps no modules to devices"),
    "numbers for modules": ({1: "cpu"}, "maps no modules to devices"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_map_that_names_what_is_not_there_is_refused(
    wrong: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    file = tmp_path / "map.yaml"
    asked, sentence = WRONG[wrong]
    file.write_text(str(asked).replace("'", '"'))
    with pytest.raises(RequestError) as found:
        prune(checkpoints("llama"), method="magnitude", out=tmp_path / "out", device_map=str(file))
    assert found.value.field == "device_map"
    assert sentence in found.value.said
    assert not (tmp_path / "out").exists()


def test_a_map_of_one_model_is_refused_where_several_are_made(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"method": "magnitude", "out": tmp_path / "out", "device_map": PLACES}
    with pytest.raises(RequestError, match="device_map: a map names the modules of one model"):
        prune(checkpoints("llama"), recovery="reconstruct", **asked)


def test_what_reads_the_tokens_must_be_where_it_computes(checkpoints: tiny.Checkpoints) -> None:
    with pytest.raises(RequestError, match=r"device_map: model.embed_tokens.weight waits elsewhere"):
        load(str(checkpoints("llama")), device_map=PLACES | {"model.embed_tokens": "disk"})


def test_a_tied_head_has_a_place_too(checkpoints: tiny.Checkpoints) -> None:
    places = {"model": "cpu"}
    with pytest.raises(RequestError, match=r"device_map: lm_head.weight is in none of the modules"):
        load(str(checkpoints("phi3")), device_map=places)
    assert load(str(checkpoints("phi3")), device_map=places | {"lm_head": "cpu"})


def test_a_device_and_a_map_are_one_too_many(checkpoints: tiny.Checkpoints) -> None:
    with pytest.raises(RequestError, match="device: cpu was asked, and a device map too"):
        load(str(checkpoints("llama")), device="cpu", device_map="auto")


def test_a_model_that_is_sharded_over_processes_is_refused(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        head = distribute_tensor(model.lm_head.weight, init_device_mesh("cpu", (1,)))
        model.lm_head.weight = torch.nn.Parameter(head)
        with pytest.raises(RequestError, match="model: tensor parallelism or FSDP has sharded it"):
            prune(model, method="magnitude")
    finally:
        torch.distributed.destroy_process_group()
