"""Packed checkpoints (FP8, MXFP4, compressed-tensors), read through transformers' own conversions."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from llmprune.errors import RequestError

FORMATS = {"fp8": None, "mxfp4": None, "compressed-tensors": "compressed_tensors"}  # and the package of each
SETTING = "quantization_config"


def format_of(settings: Mapping[str, Any]) -> str | None:
    """The format that config.json names, such as `fp8`; None of weights that are not packed."""
    for key in (SETTING, "compression_config"):
        if found := settings.get(key):
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


def quantizer_of(settings: Mapping[str, Any]) -> Any | None:
    """What unpacks the weights of a checkpoint, given config.json; None where they are not packed."""
    kind = format_of(settings)
    if kind is None:
        return None
    asked = AUTO_QUANTIZATION_CONFIG_MAPPING[kind].from_dict({**settings[SETTING], "dequantize": True})
    made = AUTO_QUANTIZER_MAPPING[kind](asked, pre_quantized=True)
    made.validate_environment()
    return made
