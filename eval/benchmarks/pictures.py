"""Draw README.md's plot from the figures in eval/results, after measuring: quality against bytes."""

from __future__ import annotations

from pathlib import Path

from llmprune_eval import page, svg
from llmprune_eval.plots import Axis, Chart, Series
from table import ROOT, rows

FILE = ROOT / "eval" / "pictures" / "equal-bytes.svg"
MODELS = {"SmolLM2-135M": "smollm2-135m", "Qwen2.5-Coder-0.5B": "qwen2.5-coder-0.5b"}
FORM = "small"
TYPES = ("f16", "q8_0", "q4_0")


def chart() -> Chart:
    """The divergence of both models' files, over their bytes; f16 is the scale."""
    series = []
    for said, model in MODELS.items():
        known = rows("equal_bytes", model=model)
        if not known:
            continue
        scale = known[f"dense-{TYPES[0]}"]["bytes"]
        for what, form, kinds in (("quantised", "dense", TYPES[1:]), (f"{FORM}, quantised", FORM, TYPES)):
            found = [(kind, known[name]) for kind in kinds if (name := f"{form}-{kind}") in known]
            points = tuple((row["bytes"] / scale, row["kl"]) for _, row in found)
            marks = tuple(kind for kind, _ in found)
            if found:
                series.append(Series(f"{said}, {what}", points, marks=marks, hollow=form == "dense"))
    axes = Axis("bytes, share of the f16 file", percent=True), Axis("KL to the dense model, nats", log=True)
    return Chart(
        "equal-bytes", "What a file of so many bytes is worth: down and left is better", *axes, tuple(series)
    )


def drawn() -> str:
    """As SVG."""
    return f"{svg.alone(chart(), page.STYLE)}\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    Path(FILE).write_text(drawn())
