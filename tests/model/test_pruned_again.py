"""Prune a pruned model again, by units or by masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from llmprune import prune
from llmprune.errors import RequestError
from tests import tiny
from tests.model.test_units import CALIBRATION, PROBE, asked, load

pytestmark = pytest.mark.usefixtures("check_in_process")


def widths_of(folder: Path) -> list[tuple[int, int]]:
    """Query heads and channels of every block."""
    blocks = json.loads((folder / "config.json").read_text())["per_layer_config"].values()
    return [(block["num_attention_heads"], block["intermediate_size"]) for block in blocks]


@pytest.mark.parametrize("layout", ["per_layer", "padded"])
def test_blocks_of_different_sizes_are_cut_once_more(
    layout: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), asked("per_layer"), out=tmp_path / "once")
    again = asked(layout, allocation="global_threshold") | {"sparsity": 0.2}
    prune(tmp_path / "once", again, out=tmp_path / "twice")
    live = load(tmp_path / "once", "per_layer")
    prune(live, again, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "once"))
    torch.testing.assert_close(load(tmp_path / "twice", layout)(PROBE).logits, live(PROBE).logits)
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    files = {path.name for path in (tmp_path / "twice").iterdir()}
    if layout == "per_layer":
        assert all(
            a <= b for a, b in zip(widths_of(tmp_path / "twice"), widths_of(tmp_path / "once"), strict=True)
        )
    else:
        assert not files & {"modeling_llmprune.py"} and not config.keys() & {"auto_map", "per_layer_config"}
        assert config["architectures"] == ["LlamaForCausalLM"]
    live.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(load(tmp_path / "saved", layout)(PROBE).logits, live(PROBE).logits)


@pytest.mark.parametrize("family", ["llama", "mistral"])  # mistral has no field for the biases
def test_blocks_of_different_sizes_are_masked(
    family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints(family), asked("per_layer", repair="mean_bias"), out=tmp_path / "cut")
    masks = {"method": "wanda", "pattern": "2:4", "calibration": CALIBRATION}
    prune(tmp_path / "cut", masks, out=tmp_path / "masked")
    live = load(tmp_path / "cut", "per_layer")
    prune(live, masks, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "cut"), out=tmp_path / "live")
    for folder in ("masked", "live"):
        torch.testing.assert_close(load(tmp_path / folder, "per_layer")(PROBE).logits, live(PROBE).logits)


def test_a_layout_that_cannot_store_the_earlier_pruning_is_refused(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("mistral"), asked("per_layer", repair="mean_bias"), out=tmp_path / "once")
    for layout, why in (("uniform", "different sizes already"), ("padded", "a bias")):
        with pytest.raises(RequestError, match=why):
            prune(tmp_path / "once", asked(layout, repair="none"), out=tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
