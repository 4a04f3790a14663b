"""Packed checkpoints (FP8, MXFP4, compressed-tensors), read through transformers' own conversions."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from llmprune.checkpoint import edge_blocks
from llmprune.checkpoint.shards import Stored
from llmprune.errors import RequestError

FORMATS = {"fp8": None, "mxfp4": None, "compressed-tensors": "compressed_tensors"}  # and the package of each
SETTING = "quantization_config"


def format_of(settings: Mapping[str, Any]) -> str | None:
    """The format that config.json names, such as `fp8`; None of weights that are not packed."""
    for key in (SETTING, "compression_config"):
        if (found := settings.get(key)) is not None:
            return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else "unknown"
    return None


def require_readable(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a packed checkpoint that transformers cannot unpack one parameter at a time.

    Raises:
        RequestError: it names the format, and the way out.
    """
    kind = format_of(settings)
    if kind is None:
        return
    if kind not in FORMATS or settings.get("compression_config"):
        raise RequestError(
            "model", f"{name} is quantised ({kind}); prune the checkpoint it was quantised from"
        )
    package = FORMATS[kind]
    if package and importlib.util.find_spec(package) is None:
        raise RequestError(
            "model",
            f"{name} is packed ({kind}), which needs the package {kind}; `pip install llmprune[packed]`",
        )


def require_scaled(name: str, tensors: Mapping[str, Stored], settings: Mapping[str, Any]) -> None:
    """Refuse packed weights without scales, or with scales of another grid than config.json gives.

    transformers would take such weights as they are, or guess the grid.

    Raises:
        RequestError: it names the first.
    """
    block = (settings.get(SETTING) or {}).get("weight_block_size")
    for key, stored in tensors.items():
        names = _scales(key, stored)
        scales = next((tensors[one] for one in names if one in tensors), None)
        integers = key.endswith("_packed") and stored.type == "I32"
        shapeless = integers and key.removesuffix("_packed") + "_shape" not in tensors
        if names and (shapeless or scales is None or not _fit(stored, scales, block)):
            raise RequestError(
                "model",
                f"{name} lacks what unpacks {key}, scales in the grid that config.json gives; "
                "download it again",
            )


def _scales(key: str, stored: Stored) -> list[str]:
    """The names that the scales of a packed tensor can have; none of any other tensor."""
    stem = key.removesuffix("weight")
    if key.endswith("_blocks") and stored.type == "U8":
        return [key.removesuffix("_blocks") + "_scales"]
    if key.endswith(".weight_packed"):
        return [key.removesuffix("_packed") + "_scale"]
    if stored.type == "F8_E4M3" and not key.endswith("scale"):
        return [f"{key}_scale_inv", f"{key}_scale", f"{stem}scale", f"{stem}qscale_weight"]
    return []


def _fit(stored: Stored, scales: Stored, block: list[int] | None) -> bool:
    """Whether scales have the grid of a packed tensor."""
    if stored.key.endswith("_blocks"):
        return scales.shape == stored.shape[:-1]
    if block and stored.type == "F8_E4M3":
        grid = [math.ceil(size / of) for size, of in zip(stored.shape[-2:], block, strict=True)]
        return scales.shape == (*stored.shape[:-2], *grid)
    return not stored.key.endswith("_packed") or scales.numel == 1 or scales.shape[0] == stored.shape[0]


def quantizer_of(settings: Mapping[str, Any]) -> Any | None:
    """What unpacks the weights of a checkpoint, given config.json; None where they are not packed."""
    kind = format_of(settings)
    if kind is None:
        return None
    edge_blocks.install()
    asked = AUTO_QUANTIZATION_CONFIG_MAPPING[kind].from_dict({**settings[SETTING], "dequantize": True})
    made = AUTO_QUANTIZER_MAPPING[kind](asked, pre_quantized=True)
    made.validate_environment()
    return made
