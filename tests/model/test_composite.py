"""A model with other parts, such as a vision tower: the decoder is pruned, the rest is copied as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from tests import tiny
from tests.families import configs, sweep
from tests.test_families import PROBE

pytestmark = pytest.mark.usefixtures("check_in_process")
BLOCKS = re.compile(r"language_model\.(model\.)?layers\.")
UNITS = {"name": "units", "multiple": 8}
WAYS: dict[str, dict[str, Any]] = {
    "units": {"method": "wanda", "pattern": UNITS, "sparsity": 0.3, "layout": "uniform", "repair": "none"},
    "blocks": {"pattern": {"name": "blocks", "remove": [1]}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("composite") / "dense"
    sweep.model("gemma3").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Those outside the decoder's blocks."""
    found = {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}
    return {key: tensor for key, tensor in found.items() if not BLOCKS.search(key)}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_the_decoder_shrinks_and_the_rest_stays(way: str, folder: Path, tmp_path: Path) -> None:
    report = prune(folder, WAYS[way], tokens=PROBE, out=tmp_path / "out")
    before, after = tensors(folder), tensors(tmp_path / "out")
    assert len(before) > 20 and before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    old, new = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "out"))
    assert new["vision_config"] == old["vision_config"]
    assert new["text_config"] != old["text_config"]
    assert new.keys() == old.keys() | {"llmprune"}
    assert report.totals["parameters_after"] < report.totals["parameters_before"]

    live = AutoModelForCausalLM.from_pretrained(folder).eval()
    prune(live, WAYS[way], tokens=PROBE)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(live(PROBE).logits, loaded(PROBE).logits)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ({"pattern": UNITS, "method": "wanda", "sparsity": 0.3, "layout": "per_layer"}, "--layout uniform"),
        ({"pattern": {"name": "blocks", "parts": "ffn", "remove": [1]}}, "remove whole blocks"),
    ],
)
def test_layers_of_different_sizes_are_refused(
    pattern: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=f"one part among others.*{said}"):
        prune(folder, pattern, tokens=PROBE, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "blocks"), [("got_ocr2", "model.language_model.layers"), ("git", "git.encoder.layer")]
)
def test_the_blocks_are_the_decoders_where_other_parts_are_as_deep(family: str, blocks: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configs.config(family))
    assert Anatomy(model, LinearLayers()).prefix == blocks
