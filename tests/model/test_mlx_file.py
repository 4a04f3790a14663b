"""Blocks of different sizes come with the file by which mlx-lm builds them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.model import mlx_file
from llmprune.model.families import MLX
from tests import tiny
from tests.export.test_gguf import BIASED, UNEVEN, saved

pytestmark = pytest.mark.usefixtures("check_in_process")


def config(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("family", MLX)
def test_the_config_names_a_file_that_compiles(family: str, tmp_path: Path) -> None:
    prune(saved(family, tmp_path / "dense"), UNEVEN, out=tmp_path / "out")
    assert config(tmp_path / "out")[mlx_file.KEY] == mlx_file.FILE
    code = (tmp_path / "out" / mlx_file.FILE).read_text()
    compile(code, mlx_file.FILE, "exec")
    assert f"from mlx_lm.models import {MLX[family]} as stock" in code and "llmprune" not in code


def test_it_goes_where_blocks_are_alike_again_or_lose_a_part(tmp_path: Path) -> None:
    prune(saved("llama", tmp_path / "dense"), UNEVEN, out=tmp_path / "out")
    again = {"method": "magnitude", "sparsity": 0.1, "layout": "padded", "pattern": UNEVEN["pattern"]}
    prune(tmp_path / "out", again, out=tmp_path / "again")
    assert mlx_file.KEY not in config(tmp_path / "again")
    assert not (tmp_path / "again" / mlx_file.FILE).exists()
    part = {"pattern": {"name": "blocks", "parts": "attention", "remove": [1]}}
    prune(tmp_path / "dense", part, out=tmp_path / "part")
    assert mlx_file.KEY not in config(tmp_path / "part")


def test_families_that_were_not_tried_have_none(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    asked = UNEVEN | {"pattern": {"name": "units", "multiple": 8}}
    prune(checkpoints("phi3"), asked, out=tmp_path / "out")
    assert mlx_file.KEY not in config(tmp_path / "out")


@torch.no_grad()
@pytest.mark.skipif(find_spec("mlx_lm") is None, reason="needs mlx-lm: pip install 'mlx[cpu]' mlx-lm==0.32.2")
@pytest.mark.parametrize("family", MLX)
@pytest.mark.parametrize("asked", [UNEVEN, BIASED | {"layout": "per_layer"}], ids=["uneven", "biased"])
def test_mlx_computes_what_transformers_computes(
    family: str, asked: dict[str, object], tmp_path: Path
) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    prune(saved(family, tmp_path / "dense"), asked, out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    ids = torch.randint(3, 440, (1, 64), generator=torch.Generator().manual_seed(0))
    found = load_model(tmp_path / "out", trust_remote_code=True)[0](mx.array(ids.numpy()))
    assert (torch.tensor(found.tolist()) - model(ids).logits).abs().max() < 1e-3
