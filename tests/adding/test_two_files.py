"""A kind of thing that can be pruned is two files: the site and the pattern that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tiny
from tests.adding.conftest import Add
from tests.resume.interrupted import pruned_twice

EXPERT_SITES = '''
"""One expert's slice of a fused parameter [E, I, O]: stored at a key and an index."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.base import Sites


@dataclass(frozen=True, eq=False)
class ExpertSite(Site):
    shares_parameter: ClassVar = True
    expert: int = 0

    def matrix(self, stored: Tensor) -> Tensor:
        return stored[self.expert].T

    def input_from_call(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden, routed = args[:2]
        return hidden[(routed == self.expert).any(-1)]


@dataclass(frozen=True)
class Experts(Sites):
    def find(self, anatomy: Anatomy) -> Iterator[ExpertSite]:
        index = 0
        for number, block in enumerate(anatomy.blocks):
            path = f"{anatomy.prefix}.{number}.mlp.experts"
            count, inputs, outputs = block.mlp.experts.gate_up_proj.shape
            for expert in range(count):
                yield ExpertSite(
                    f"{path}.{expert}.gate_up", index, number, path, anatomy.module, inputs, outputs,
                    leaf="gate_up_proj", expert=expert,
                )
                index += 1
'''
EXPERT_PATTERN = '''
"""Weights inside experts."""

from dataclasses import dataclass
from typing import ClassVar

from llmprune.patterns.n_of_m import NofM


@dataclass(frozen=True)
class InsideExperts(NofM):
    prunes: ClassVar = "added_by_a_test.expert_sites"

    def resolved(self):
        return {"name": "added_by_a_test.inside_experts", "n": self.n, "m": self.m}
'''
BLOCK_SITES = '''
"""One site for each block, of which the library knows how it goes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.model.anatomy import Anatomy
from llmprune.model.block_site import BlockSite
from llmprune.model.fewer_blocks import FewerBlocks
from llmprune.model.sites.base import SizeRequest, Sites
from llmprune.model.widths import Budget


@dataclass(frozen=True)
class Blocks(Sites):
    changes_sizes: ClassVar = True

    def find(self, anatomy: Anatomy) -> Iterator[BlockSite]:
        for number, block in enumerate(anatomy.blocks):
            path = f"{anatomy.prefix}.{number}"
            size = sum(p.numel() for p in block.parameters())
            yield BlockSite(path, number, number, path, anatomy.module, 1, 1, size=size)

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> FewerBlocks:
        return FewerBlocks(anatomy, {site.block for site in anatomy.sites if budget[site.name] > 0.5})
'''
BLOCK_PATTERN = '''
"""Whole blocks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmprune.patterns.base import Pattern


@dataclass(frozen=True)
class WholeBlocks(Pattern):
    prunes: ClassVar = "added_by_a_test.block_sites"

    @property
    def removed(self) -> str:
        return "whole blocks"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        return torch.tensor([sparsity < 0.5])
'''


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A mixture whose experts are stored fused, as [experts, inputs, outputs]."""
    common = {k: v for k, v in tiny.COMMON.items() if k != "intermediate_size"}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 4, "head_dim": 8, "intermediate_size": 16}
    config = AutoConfig.for_model("gpt_oss", **common, **experts, rope_parameters={"rope_type": "default"})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "mixture")
    tiny.tokenizer().save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("propagation", ["dense", "layer"])
def test_experts_inside_a_fused_parameter(propagation: str, add: Add, mixture: Path, tmp_path: Path) -> None:
    add("expert_sites", EXPERT_SITES)
    pattern = add("inside_experts", EXPERT_PATTERN)
    asked = {
        "method": "sparsegpt",
        "pattern": pattern,
        "propagation": propagation,
        "calibration": {"samples": 4, "length": 16},
    }
    report = pruned_twice(mixture, asked, tmp_path)
    assert len(report.sites) == 3 * 4
    before, after = tensors(mixture), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for key, tensor in after.items():
        if key.endswith("gate_up_proj"):  # groups of 4 inputs, which are the second dimension
            assert ((tensor == 0).reshape(4, -1, 4, tensor.shape[2]).sum(2) == 2).all()
        else:
            assert torch.equal(tensor, before[key])
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_whole_blocks(add: Add, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    add("block_sites", BLOCK_SITES)
    pattern = add("whole_blocks", BLOCK_PATTERN)
    allocation = {"name": "profile", "blocks": [0.0, 0.99, 0.0]}
    asked = {"method": "random", "pattern": pattern, "sparsity": 0.33, "allocation": allocation}
    report = pruned_twice(checkpoints("llama"), asked, tmp_path)
    assert report.totals["removed_parameters"] == report.sites[1].weights
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 2
    assert "Whole blocks are gone" in (tmp_path / "out" / "README.md").read_text()
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    dense = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    del dense.model.layers[1]
    ids = torch.arange(3, 19)[None]
    assert torch.equal(pruned(ids, use_cache=False).logits, dense(ids, use_cache=False).logits)
