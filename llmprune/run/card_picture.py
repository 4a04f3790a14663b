"""The picture of a model card: what is left beside the dense model, and what went from each block."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from llmprune import measured
from llmprune.measured import Judged, Ratio
from llmprune.report import Report, SiteRecord

FILE = "llmprune.svg"
WIDTH, LEFT, RIGHT = 640, 200, 160  # of the picture; what stands on both sides of the bars
ROW, HEIGHT = 24, 90  # of a bar; of the tallest column
SPEEDS = {"prefill_tokens_per_s": "prefill speed", "decode_tokens_per_s": "decode speed"}
# On paper of its own: what shows a card does not say whether it is light or dark.
PAPER, INK, GONE, LEFT_OVER = "#ffffff", "#24292f", "#c2560c", "#0b63b5"


def drawn(report: Report) -> str:
    """The picture as SVG, of what is known by now."""
    bars, gone = _ratios(report), _gone(report.sites)
    top = 34 + ROW * len(bars)
    height = top + (HEIGHT + 82 if gone else 12)
    size = {"width": str(WIDTH), "height": str(height), "viewBox": f"0 0 {WIDTH} {height}"}
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, "role": "img"})
    ElementTree.SubElement(root, "title").text = "This model beside the dense one"
    _rectangle(root, (0, 0, WIDTH, height), PAPER)
    _text(root, 12, 20, "This model over the dense one (line: as much)")
    _bars(root, bars)
    if gone:
        last = " by the last step" if report.steps else ""
        said = f"What went from each block{last}, in percent of the weights of its pruned layers"
        _text(root, 12, top + 26, said)
        _columns(root, gone, top + 44)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _ratios(report: Report) -> dict[str, Ratio]:
    """How much of each figure there is, over the dense model's."""
    totals, evaluation = report.totals, report.evaluation or {}
    before, after = totals["parameters_before"], totals["parameters_after"]
    found = {"parameters": after / before}
    if totals["zero_parameters"]:
        found["parameters but zeros"] = (after - totals["zero_parameters"]) / before
    found["weight files"] = totals["bytes_after"] / totals["bytes_before"]
    ratios: dict[str, Ratio] = {what: {"ratio": one, "interval": None} for what, one in found.items()}
    bench = evaluation.get("bench", {})
    ratios |= {what: one for name, what in SPEEDS.items() if (one := measured.ratio(bench, name))}
    return ratios | _bits(evaluation.get("model", {}))


def _bits(pruned: Judged) -> dict[str, Ratio]:
    """Bits per byte on the first text that both were measured on."""
    first = next(iter(pruned.get("comparison", {}).get("perplexity", [])), None)
    if first is None or "bits_per_byte" not in first:
        return {}
    ratio: Ratio = {"ratio": first["bits_per_byte"], "interval": first.get("interval")}
    return {"bits per byte (less is better)": ratio}


def _gone(sites: Sequence[SiteRecord]) -> dict[int, float]:
    """The share of its pruned weights that each block lost; nothing where none was pruned."""
    inside = [site for site in sites if str(site.block) in site.name.split(".")]
    blocks = sorted({site.block for site in inside})
    own = {block: [site for site in inside if site.block == block] for block in blocks}
    return {
        block: sum(site.dropped for site in there) / (sum(site.weights for site in there) or 1)
        for block, there in own.items()
    }


def _bars(root: ElementTree.Element, ratios: dict[str, Ratio]) -> None:
    longest = max(1.0, *(one["ratio"] for one in ratios.values()))
    scale = (WIDTH - LEFT - RIGHT) / longest
    for number, (what, one) in enumerate(ratios.items()):
        y = 34 + ROW * number
        _text(root, LEFT - 10, y + 14, what, "end")
        _rectangle(root, (LEFT, y, scale * one["ratio"], ROW - 6), LEFT_OVER)
        _text(root, LEFT + scale * longest + 10, y + 14, measured.said(one))
    _rectangle(root, (LEFT + scale - 1, 30, 2, ROW * len(ratios)), INK)


def _columns(root: ElementTree.Element, gone: dict[int, float], top: int) -> None:
    width = (WIDTH - 24) / len(gone)
    every = -(-len(gone) // 20)  # so many columns have room for a number each
    for number, (block, share) in enumerate(gone.items()):
        x, tall = 12 + width * number, HEIGHT * share
        _rectangle(root, (x + width * 0.1, top + HEIGHT - tall, width * 0.8, tall), GONE)
        if number % every == 0:
            _text(root, x + width / 2, top + HEIGHT - tall - 4, f"{100 * share:.0f}", "middle")
            _text(root, x + width / 2, top + HEIGHT + 16, str(block), "middle")
    _rectangle(root, (12, top + HEIGHT, WIDTH - 24, 1), INK)
    _text(root, WIDTH - 12, top + HEIGHT + 32, "block", "end")


def _rectangle(root: ElementTree.Element, box: tuple[float, float, float, float], colour: str) -> None:
    sides = {key: f"{side:.1f}" for key, side in zip(("x", "y", "width", "height"), box, strict=True)}
    ElementTree.SubElement(root, "rect", {**sides, "fill": colour})


def _text(root: ElementTree.Element, x: float, y: float, words: str, anchor: str = "start") -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": INK}
    font = {"font-family": "system-ui, sans-serif", "font-size": "12"}
    ElementTree.SubElement(root, "text", {**place, **font}).text = words
