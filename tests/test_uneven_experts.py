"""Blocks of a mixture keep different numbers of experts, where the layout is `per_layer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.export import layers
from llmprune.export.families import home_of
from tests import mixtures, tiny
from tests.mixtures import asked, load, logits
from tests.test_mixtures import masked

# Of 8 experts in three blocks: 6, 5 and 8.
UNEVEN = {"sparsity": 5 / 24, "allocation": {"name": "profile", "blocks": [0.25, 0.375, 0.0]}}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_blocks_keep_as_many_experts_as_their_profile_says(family: str, tmp_path: Path) -> None:
    """A fresh process without llmprune builds them, whichever name its class reads the count by."""
    folder, out = mixtures.save(family, tmp_path / "in", num_hidden_layers=3), tmp_path / "out"
    report = prune(folder, asked(method="reap", **UNEVEN), out=out)
    assert report.reload is not None
    assert report.reload["line"].endswith("trust_remote_code=True)")
    assert report.reload["max_abs_logit_difference"] <= 1e-5
    pruned, dense, live = load(out), load(folder), load(folder)
    held = [len(block.mlp.experts.down_proj) for block in pruned.model.layers]
    assert held == [6, 5, 8] == [record.units[1] for record in report.sites if record.units]
    assert report.totals["parameters_after"] == sum(p.numel() for p in pruned.parameters())
    with masked(dense, pruned):
        torch.testing.assert_close(logits(dense), logits(pruned), atol=1e-5, rtol=0)
    prune(live, asked(method="reap", **UNEVEN), tokenizer=AutoTokenizer.from_pretrained(folder))
    assert torch.equal(logits(live), logits(pruned))


@pytest.mark.usefixtures("check_in_process")
def test_one_threshold_for_the_experts_of_all_blocks(tmp_path: Path) -> None:
    """In every block, groups lose as many, and enough stay for the router to choose from."""
    folder = mixtures.save("deepseek_v3", tmp_path / "in", num_hidden_layers=4)
    recipe = {"method": "reap", "sparsity": 0.5, "allocation": "global_threshold"}
    report = prune(folder, asked(**recipe), out=tmp_path / "out")
    assert report.recipe["layout"] == "per_layer"
    counts = [record.units[1] for record in report.sites if record.units]
    assert all(count % 4 == 0 and count >= 8 for count in counts)
    assert report.totals["sparsity"] == pytest.approx(0.5, abs=0.05)
    sizes = json.loads((tmp_path / "out" / "config.json").read_text())["per_layer_config"]
    assert [own["n_routed_experts"] for own in sizes.values()] == counts


@pytest.mark.usefixtures("check_in_process")
def test_uneven_blocks_are_pruned_again_in_their_layout(tmp_path: Path) -> None:
    """Elsewhere one field counts the experts of all blocks: in `uniform`, and in GGUF."""
    folder = mixtures.save("qwen3_moe", tmp_path / "in", num_hidden_layers=3)
    prune(folder, asked(method="reap", **UNEVEN), out=tmp_path / "once")
    again = asked(method="reap", sparsity=2 / 19)
    with pytest.raises(RequestError, match="different numbers of experts already; use per_layer"):
        prune(tmp_path / "once", again, out=tmp_path / "twice")
    with pytest.raises(RequestError, match="blocks of one size"):
        home_of(layers.read(tmp_path / "once"))
    more = {"allocation": {"name": "profile", "blocks": [0.0, 0.0, 0.25]}}
    prune(tmp_path / "once", again | more, out=tmp_path / "twice")
    twice = load(tmp_path / "twice")
    assert [len(block.mlp.experts.down_proj) for block in twice.model.layers] == [6, 5, 6]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"layout": "padded"}, "use uniform or per_layer"),
        (
            {"layout": "uniform", **UNEVEN},
            "uniform was asked, .* use --allocation uniform, or --layout per_layer$",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused(
    more: dict[str, Any], why: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=why):
        prune(
            checkpoints("mixtral"),
            asked(**{"method": "reap", "sparsity": 0.25, **more}),
            out=tmp_path / "out",
        )
