"""No layout writes a bias that an engine's own class would drop without a word.

vLLM 0.32 has no output bias in the attention of Qwen2, Qwen3, Gemma, Cohere-2 and GLM-4, and ignores one in
the file. In these families a bias is stored with `per_layer` alone, for which it takes our modelling file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune import prune
from llmprune.errors import RequestError
from tests import tiny

ASKED = {
    "pattern": {"name": "units", "multiple": 4},
    "sparsity": 0.3,
    "allocation": "uniform",
    "calibration": {"samples": 4, "length": 32},
}
UNREAD = ["qwen2", "qwen3", "gemma", "cohere2", "glm4"]


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.mark.parametrize("layout", ["uniform", "padded"])
@pytest.mark.parametrize("repair", ["mean_bias", "affine"])
@pytest.mark.parametrize("family", UNREAD)
def test_it_is_refused_before_anything_is_written(
    family: str, repair: str, layout: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked = ASKED | {"method": "flap", "repair": repair, "layout": layout}
    with pytest.raises(RequestError, match="use --layout per_layer, or --repair least_squares or none"):
        prune(checkpoints(family), asked, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["uniform", "padded"])
@pytest.mark.parametrize("family", ["qwen3", "gemma", "cohere2"])
def test_groups_of_heads_alone_are_no_way_around(
    family: str, layout: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    """The config has a field for it, so that transformers reads it, and vLLM does not."""
    heads = {"name": "units", "parts": "attention"}
    with pytest.raises(RequestError, match=f"vLLM drops without a word from {layout} '{family}'"):
        prune(
            checkpoints(family),
            ASKED | {"method": "flap", "pattern": heads, "layout": layout},
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [{"repair": "least_squares"}, {"repair": "none"}, {"layout": "per_layer"}])
def test_the_ways_out_are_open(more: dict[str, str], checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    asked = ASKED | {"method": "flap", "layout": "uniform", **more}
    prune(checkpoints("qwen3"), asked, out=tmp_path / "out")


def test_families_whose_biases_are_read_are_not_refused(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked = ASKED | {"method": "flap", "layout": "uniform"}
    for family in ("llama", "granite", "smollm3"):
        prune(checkpoints(family), asked, out=tmp_path / family)
