"""Which sizes suit an engine: rows that its quantised types divide, heads and widths that its ranks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmprune.errors import RequestError
from llmprune.export.families import HOMES, home_of
from llmprune.export.layers import Layers

ROWS = {"q8_0 and q4_0": 32, "K-quants": 256}  # numbers that llama.cpp quantises together


@dataclass(frozen=True)
class Fit:
    """Whether some sizes divide."""

    what: str
    fits: bool
    why: str
    """What divides, or which block does not, and the option that would."""


def fits(layers: Layers, engine: str) -> list[Fit]:
    """Check the sizes of a checkpoint.

    Args:
        layers: of the checkpoint.
        engine: `gguf`, `vllm`, or `vllm:RANKS` for so many tensor-parallel ranks.

    Raises:
        RequestError: there is no such engine, or the family is not known.
    """
    name, _, ranks = engine.partition(":")
    if (name, ranks) != ("gguf", "") and (name != "vllm" or not (ranks or "1").isdigit() or ranks == "0"):
        raise RequestError("for", f"{engine!r} is not known; ask for gguf, vllm or vllm:RANKS")
    if layers.family not in HOMES:
        raise RequestError(
            "for", f"the sizes of {layers.family} models are not known here; of {', '.join(HOMES)} they are"
        )
    return _quantised(layers) if name == "gguf" else _shared(layers, int(ranks or 1))


def _quantised(layers: Layers) -> list[Fit]:
    try:
        found = [Fit("architecture", True, f"{home_of(layers).arch}")]
    except RequestError as error:
        found = [Fit("architecture", False, str(error))]
    rows = {
        "channels": layers.width,
        "heads together": [heads * layers.head_size for heads in layers.heads],
        "hidden states": [int(layers.config["hidden_size"])] * len(layers.own),
    }
    ways = {"channels": "prune with pattern.multiple={by}"}
    return found + [_divide(f"{types}, rows of {by}", rows, by, ways) for types, by in ROWS.items()]


def _shared(layers: Layers, ranks: int) -> list[Fit]:
    sizes = {
        "heads": layers.heads,
        "key and value heads": layers.kv,
        "channels": layers.width,
        "rows of the vocabulary": [layers.shape("model.embed_tokens.weight")[0]],
    }
    ways = {
        "heads": "prune with pattern.kv_multiple={by}",
        "key and value heads": "prune with pattern.kv_multiple={by}",
        "channels": "prune with a pattern.multiple that {by} divides",
    }
    return [_divide(f"{what}, {ranks} ranks", {what: own}, ranks, ways) for what, own in sizes.items()]


def _divide(what: str, sizes: Mapping[str, list[int]], by: int, ways: Mapping[str, str]) -> Fit:
    """Whether a number divides the sizes of every block."""
    for name, own in sizes.items():
        bad = [block for block, size in enumerate(own) if size % by]
        if bad:
            where = f"block {bad[0]} has {own[bad[0]]}, and {len(bad)} of {len(own)} blocks do not divide"
            way = f"; {ways[name].format(by=by)}" if name in ways else ""
            return Fit(what, False, f"no: of {name}, {where}{way}" if len(own) > 1 else f"no: {own[0]}{way}")
    return Fit(what, True, "all divide")
