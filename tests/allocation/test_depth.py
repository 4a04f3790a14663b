"""Criteria of blocks against their formulas, on the hidden states that transformers puts out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from llmprune import prune
from tests import tiny

DEPTH = 6
TOKENS = torch.randint(3, tiny.VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(5))


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("deep") / "model"
    config = LlamaConfig(**{**tiny.COMMON, "num_hidden_layers": DEPTH, "initializer_range": 0.3})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def states(folder: Path) -> list[Tensor]:
    """What enters every block, and what leaves the last one before the norm."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.model.norm = torch.nn.Identity()
    return [h.flatten(0, 1).double() for h in model(TOKENS, output_hidden_states=True).hidden_states]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def removed(folder: Path, name: str, out: Path) -> set[int]:
    report = prune(folder, {"method": name, "pattern": "blocks", "sparsity": 0.34}, tokens=TOKENS, out=out)
    return {site.block for site in report.sites if site.reached}


def test_shortgpt_removes_the_blocks_of_least_influence(deep: Path, tmp_path: Path) -> None:
    h = states(deep)
    influence = {block: float(1 - cosine(h[block], h[block + 1]).mean()) for block in range(1, DEPTH - 1)}
    expected = set(sorted(influence, key=influence.__getitem__)[:2])
    assert removed(deep, "shortgpt", tmp_path / "out") == expected


def test_angular_removes_the_span_with_the_smallest_angle(deep: Path, tmp_path: Path) -> None:
    h = states(deep)
    angle = {
        start: float(cosine(h[start], h[start + 2]).arccos().mean() / math.pi)
        for start in range(1, DEPTH - 2)
    }
    start = min(angle, key=angle.__getitem__)
    assert removed(deep, "angular", tmp_path / "out") == {start, start + 1}
