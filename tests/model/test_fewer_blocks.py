"""A model without some of its blocks is the dense model that skips them, in every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from tests import tiny
from tests.families import sweep
from tests.test_families import PROBE

TEXT = {"samples": 4, "length": 16}
LISTED: dict[str, Any] = {"pattern": {"name": "blocks", "remove": [1]}}


pytestmark = pytest.mark.usefixtures("check_in_process")


def passed_on(_: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
    """A block's input in place of its output."""
    return (given[0], *output[1:]) if isinstance(output, tuple) else given[0]


def skipping(folder: Path, gone: set[int]) -> PreTrainedModel:
    """The dense model whose blocks `gone` pass their input on."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    blocks = Anatomy(model, LinearLayers()).blocks
    for block in gone:
        blocks[block].register_forward_hook(passed_on)
    return model


def generated(model: PreTrainedModel, *, cached: bool) -> Tensor:
    return model.generate(PROBE[:, :8], max_new_tokens=6, do_sample=False, use_cache=cached, pad_token_id=0)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_result_is_the_dense_model_that_skips_the_block(
    family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints(family)
    report = prune(folder, LISTED, out=tmp_path / "out")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert pruned.config.llmprune["blocks"] == [0, 2]
    assert len(Anatomy(pruned, LinearLayers()).blocks) == 2
    expected = skipping(folder, {1})(PROBE, use_cache=False).logits
    torch.testing.assert_close(pruned(PROBE, use_cache=False).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(generated(pruned, cached=True), generated(pruned, cached=False))
    dense = tiny.model(family)
    block = Anatomy(dense, LinearLayers()).blocks[1]
    assert report.totals["removed_parameters"] == sum(p.numel() for p in block.parameters())
    assert [site.block for site in report.sites if site.reached] == [1]


@torch.no_grad()
def test_a_model_in_memory_loses_the_same_block(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("gemma2")
    live = AutoModelForCausalLM.from_pretrained(folder).eval()
    prune(live, LISTED)
    prune(folder, LISTED, out=tmp_path / "out")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(live(PROBE).logits, pruned(PROBE).logits)
    assert torch.equal(generated(live, cached=True), generated(pruned, cached=True))


def test_the_dense_indices_survive_a_second_removal(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), LISTED, out=tmp_path / "once")
    again = {"pattern": {"name": "blocks", "remove": [0], "keep_ends": False}}
    report = prune(tmp_path / "once", again, out=tmp_path / "twice")
    assert report.blocks == [2]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "twice").config.llmprune["blocks"] == [2]


@pytest.mark.parametrize(
    ("asked", "said"),
    {
        "a block twice": ({"pattern": {"name": "blocks", "remove": [1, 1]}}, "each block to remove once"),
        "no such block": ({"pattern": {"name": "blocks", "remove": [7]}}, "the model has 0 to 2"),
        "the first": ({"pattern": {"name": "blocks", "remove": [0]}}, "keep_ends=false"),
        "all": ({"pattern": {"name": "blocks", "remove": [0, 1, 2], "keep_ends": False}}, "leave at least"),
        "none": ({"pattern": "blocks", "sparsity": 0.1}, "0.1 of 3 blocks is 0; ask for 0.333 to 0.333"),
        "too many": ({"pattern": "blocks", "sparsity": 0.7}, "0.7 of 3 blocks is 2"),
        "a method": ({"pattern": "blocks", "method": "wanda"}, "wanda prunes single weights or whole units"),
        "an allocation": ({"pattern": "blocks", "allocation": "uniform"}, "cannot share out blocks"),
        "a repair": ({"pattern": "blocks", "repair": "mean_bias"}, "use --repair none"),
        "a list beside a criterion": (
            {"pattern": {"name": "blocks", "remove": [1]}, "method": "sleb"},
            "leave one out",
        ),
        "a list beside a sparsity": (
            {"pattern": {"name": "blocks", "remove": [1]}, "sparsity": 0.7},
            "blocks says itself what goes",
        ),
        "no list": ({"pattern": "blocks", "allocation": "listed", "sparsity": 0.34}, "pattern.remove lists"),
        "no number": ({"pattern": {"name": "blocks", "remove": [True]}}, "pattern.remove"),
        "no seam": (
            {"pattern": {"name": "blocks", "remove": [0], "keep_ends": False}, "repair": "span"},
            "no block before",
        ),
        "two criteria": ({"method": "sleb", "pattern": "blocks", "allocation": "laptop"}, "give one"),
    }.values(),
    ids=str,
)
def test_what_cannot_be_removed_is_refused(
    asked: dict[str, Any], said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        prune(checkpoints("llama"), {"calibration": TEXT, **asked}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("diffllama", {}, "self_attn.lambda_init"),
    ],
)
def test_blocks_that_compute_with_their_number_stay(
    family: str, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = tiny.config(family) if family in tiny.FAMILIES else AutoConfig.for_model(family, **tiny.COMMON)
    config.update(more)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(RequestError, match=said):
        prune(tmp_path / "dense", LISTED, out=tmp_path / "out")


def test_blocks_that_share_keys_and_values_stay(tmp_path: Path) -> None:
    config = tiny.gemma3n(num_kv_shared_layers=2, vocab_size_per_layer_input=tiny.VOCABULARY)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(RequestError, match="2 blocks of this 'gemma3n_text' model share the keys and values"):
        prune(tmp_path / "dense", LISTED, out=tmp_path / "out")


def test_lists_of_tokens_are_not_lists_of_blocks(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints("llama"), tmp_path / "dense")
    settings = json.loads((tmp_path / "dense" / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps(settings | {"eos_token_id": [2, 5, 7]}))
    prune(tmp_path / "dense", LISTED, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [2, 5, 7]


def test_blocks_that_share_weights_are_refused(tmp_path: Path) -> None:
    sweep.model("zamba2").save_pretrained(tmp_path / "dense")
    with pytest.raises(RequestError, match=r"blocks of this 'zamba2' model share model\.layers\..*weight"):
        prune(tmp_path / "dense", LISTED, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError, match=r"depend on their number .* is that of another"):
        prune(sweep.model("zamba2"), LISTED, tokenizer=tiny.tokenizer())
