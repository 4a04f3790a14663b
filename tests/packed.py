"""Tiny packed checkpoints, in the formats of published ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from tests import mixtures

BLOCK = 16  # of FP8 scales; published ones have 128, which is more than a tiny model's layers
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}


def _repacked(folder: Path, pack: Callable[[str, Tensor], dict[str, Tensor]], said: dict[str, Any]) -> Path:
    """Replace the tensors of a checkpoint, and say so in its config."""
    file = folder / "model.safetensors"
    made: dict[str, Tensor] = {}
    for key, tensor in load_file(file).items():
        made |= pack(key, tensor)
    save_file(made, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return folder


def _inside(key: str) -> bool:
    """Whether a published checkpoint packs this tensor: matrices of attention and experts, no router."""
    return key.endswith(("_proj.weight", "_with_mqa.weight")) or (
        ".experts." in key and key.endswith("weight")
    )


def fp8(folder: Path) -> Path:
    """DeepSeek-V3 with a scale for each block of a matrix; the last blocks of some are smaller."""

    def pack(key: str, tensor: Tensor) -> dict[str, Tensor]:
        if not _inside(key):
            return {key: tensor}
        short = [-size % BLOCK for size in tensor.shape]
        filled = pad(tensor.float(), (0, short[1], 0, short[0]))
        blocks = filled.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
        scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        packed = (blocks / scale[:, None, :, None]).reshape(filled.shape)[: len(tensor), : tensor.shape[1]]
        return {key: packed.to(torch.float8_e4m3fn), f"{key}_scale_inv": scale}

    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return _repacked(mixtures.save("deepseek_v3", folder, torch.bfloat16), pack, said)


def mxfp4(folder: Path) -> Path:
    """gpt-oss with random four-bit numbers, two in a byte, and an exponent for every 32."""
    random = torch.Generator().manual_seed(0)

    def pack(key: str, tensor: Tensor) -> dict[str, Tensor]:
        if not key.endswith(("gate_up_proj", "down_proj")):
            return {key: tensor}
        experts, inputs, outputs = tensor.shape
        scales = torch.randint(121, 125, (experts, outputs, inputs // 32), generator=random)
        blocks = torch.randint(0, 256, (*scales.shape, 16), generator=random)
        return {f"{key}_blocks": blocks.to(torch.uint8), f"{key}_scales": scales.to(torch.uint8)}

    said = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    return _repacked(mixtures.save("gpt_oss", folder, torch.bfloat16, **sizes), pack, said)


def int4(folder: Path) -> Path:
    """Qwen3-MoE with compressed-tensors' own packing of four-bit integers in groups."""
    arguments = QuantizationArgs(**INT4)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format="pack-quantized")
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")

    def pack(key: str, tensor: Tensor) -> dict[str, Tensor]:
        if not _inside(key):
            return {key: tensor}
        groups = tensor.float().unflatten(1, (-1, 16))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
        state = {"weight": tensor, "weight_scale": scale.to(tensor.dtype)}
        stem = key.removesuffix("weight")
        return {stem + name: value for name, value in compressor.compress(state, scheme).items()}

    said = {
        **{
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": ["lm_head", "re:.*gate$"],
        },
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4, "format": "pack-quantized"}},
    }
    return _repacked(mixtures.save("qwen3_moe", folder, torch.bfloat16), pack, said)


FORMATS: dict[str, Callable[[Path], Path]] = {"fp8": fp8, "mxfp4": mxfp4, "int4": int4}
