"""The cost of a block's absence is the divergence of the whole model that skips it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmprune import prune
from llmprune.model.sites.block import WholeBlocks
from llmprune.patterns.blocks import Blocks
from llmprune.walk.absence import Absence, few_windows
from tests import tiny
from tests.model.test_fewer_blocks import skipping

pytestmark = pytest.mark.usefixtures("check_in_process")

TOKENS = torch.randint(3, tiny.VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def divergence(folder: Path, gone: set[int]) -> float:
    """Mean KL(dense || pruned) over all predictions, from two whole forward passes."""
    dense, pruned = (
        skipping(folder, blocks)(TOKENS, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        for blocks in (set(), gone)
    )
    return float((dense.exp() * (dense - pruned)).sum(-1).mean())


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_cost_is_the_divergence_without_the_block(family: str, checkpoints: tiny.Checkpoints) -> None:
    folder = checkpoints(family)
    absence = Absence(tiny.streamed(folder, WholeBlocks(Blocks())), list(TOKENS.split(2)), TOKENS[:1])
    alone = absence.cost(set(), {0, 1, 2})
    assert alone == {block: pytest.approx(divergence(folder, {block}), rel=1e-3) for block in range(3)}
    after = absence.cost({1}, {0, 2})
    assert after == {block: pytest.approx(divergence(folder, {1, block}), rel=1e-3) for block in (0, 2)}


def test_few_windows_hold_at_least_the_tokens_asked() -> None:
    batches = list(TOKENS.split(2))
    assert [tuple(part.shape) for part in few_windows(batches, 33)] == [(2, 16), (1, 16)]
    assert torch.equal(torch.cat(few_windows(batches, 10**6)), TOKENS)


@torch.no_grad()
def test_sleb_and_laptop_remove_what_costs_least(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("llama")
    alone = {block: divergence(folder, {block}) for block in range(3)}
    first = min(alone, key=alone.__getitem__)
    then = min({0, 1, 2} - {first}, key=lambda block: divergence(folder, {first, block}))
    second = sorted(alone, key=alone.__getitem__)[1]
    for name, expected in {"sleb": {first, then}, "laptop": {first, second}}.items():
        pattern = {"name": "blocks", "keep_ends": False}
        asked = {"method": name, "pattern": pattern, "sparsity": 0.67}
        report = prune(folder, asked, tokens=TOKENS, out=tmp_path / name)
        assert {site.block for site in report.sites if site.reached} == expected
