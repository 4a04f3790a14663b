"""Packed checkpoints: removals copy what stays byte for byte, masks are written unpacked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmprune import prune
from llmprune.checkpoint import packed as reading
from llmprune.checkpoint import reader, source
from llmprune.errors import RequestError
from llmprune.model.sites.linear import LinearLayers
from tests import packed

CALIBRATION = {"samples": 4, "length": 32}
REMOVALS: dict[str, dict[str, Any]] = {
    "experts": {"method": "reap", "sparsity": 0.25},
    "block": {"pattern": {"name": "blocks", "remove": [1], "keep_ends": False}},
}
pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("packed")

    def made(kind: str) -> Path:
        return root / kind if (root / kind).exists() else packed.FORMATS[kind](root / kind)

    return made


def tensors(place: Path) -> dict[str, Tensor]:
    return {key: t for file in place.glob("*.safetensors") for key, t in load_file(file).items()}


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


@pytest.mark.parametrize("what", REMOVALS)
@pytest.mark.parametrize("kind", packed.FORMATS)
def test_what_stays_is_copied_as_it_is(kind: str, what: str, folder: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = prune(folder(kind), {**REMOVALS[what], "calibration": CALIBRATION}, out=out)
    assert report.reload is not None
    assert report.reload["max_abs_logit_difference"] == 0.0
    before, after = tensors(folder(kind)), tensors(out)
    assert after.keys() < before.keys() or (kind, what) == ("mxfp4", "experts")
    packed_before = {raw(row) for t in before.values() for row in (t, *t) if t.ndim}
    for key, tensor in after.items():
        assert tensor.dtype == before[key].dtype, key
        rows = [tensor] if tensor.shape == before[key].shape else list(tensor)
        assert all(raw(row) in packed_before for row in rows), key
    config = json.loads((out / "config.json").read_text())
    assert (
        config["quantization_config"]
        == json.loads((folder(kind) / "config.json").read_text())["quantization_config"]
    )


@pytest.mark.parametrize("kind", packed.FORMATS)
def test_masks_are_written_unpacked(kind: str, folder: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = {"method": "wanda", "pattern": "2:4", "calibration": CALIBRATION}
    report = prune(folder(kind), recipe, out=out)
    assert report.reload is not None
    assert report.reload["max_abs_logit_difference"] == 0.0
    assert report.totals["parameters_after"] == report.totals["parameters_before"]
    assert {t.dtype for t in tensors(out).values()} <= {torch.bfloat16, torch.float32}
    assert reading.SETTING not in json.loads((out / "config.json").read_text())


def test_one_block_at_a_time_is_unpacked(folder: Any) -> None:
    found = source.find(str(folder("fp8")))
    anatomy = reader.blueprint(found, LinearLayers())
    store = reader.open_streamed(found, anatomy, torch.float32, torch.device("cpu"))

    def held() -> list[int]:
        return [sum(p.numel() for p in block.parameters() if not p.is_meta) for block in anatomy.blocks]

    assert held() == [0, 0]
    with store.resident(1):
        assert held()[0] == 0 < held()[1]
        assert store._joined
    assert held() == [0, 0]
    assert not store._joined


def test_a_format_that_cannot_be_unpacked_is_refused(folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in folder("int4").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "bitsandbytes"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="bitsandbytes"):
        prune(other, {"method": "magnitude"}, out=tmp_path / "out")
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(RequestError, match=r"llmprune\[packed\]"):
        prune(folder("int4"), {"method": "magnitude"}, out=tmp_path / "out")


def test_weights_without_fitting_scales_are_refused(folder: Any, tmp_path: Path) -> None:
    layer = "model.layers.1."
    lost = {
        "fp8": f"{layer}self_attn.o_proj.weight_scale_inv",
        "mxfp4": f"{layer}mlp.experts.down_proj_scales",
        "int4": f"{layer}mlp.experts.3.gate_proj.weight_scale",
    }
    for kind, key in lost.items():
        for number, bad in enumerate((None, slice(1))):
            other = tmp_path / f"{kind}{number}"
            shutil.copytree(folder(kind), other)
            held = tensors(other)
            scales = held.pop(key)
            if bad:
                held[key] = scales[bad].contiguous()
            save_file(held, other / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(RequestError, match="scales"):
                prune(other, {"method": "magnitude"}, out=tmp_path / "out")
            assert not (tmp_path / "out").exists()


def test_packed_weights_that_no_config_tells_of_are_refused(folder: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder("fp8"), other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, reading.SETTING: {}}))
    with pytest.raises(RequestError, match="unknown"):
        prune(other, {"method": "magnitude"}, out=tmp_path / "out")


def test_last_blocks_may_be_smaller(folder: Any) -> None:
    """As those of DeepSeek-V3's low-rank projections."""
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    numbers, scales = (tensors(folder("fp8"))[key] for key in (name, f"{name}_scale_inv"))
    assert len(numbers) % packed.BLOCK
    rows, columns = (torch.arange(size) // packed.BLOCK for size in numbers.shape)
    found = source.find(str(folder("fp8")))
    anatomy = reader.blueprint(found, LinearLayers())
    store = reader.open_streamed(found, anatomy, torch.float32, torch.device("cpu"))
    with store.resident(1):
        read = anatomy.model.get_parameter(name)
        torch.testing.assert_close(
            read.data, numbers.float() * scales[rows[:, None], columns], rtol=2**-8, atol=0
        )
