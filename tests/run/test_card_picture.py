"""The picture of a card is well-formed, and shows what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from llmprune_eval import evaluation, keeping
from llmprune_eval.windows import Protocol

from llmprune import prune
from llmprune.run import card_picture
from llmprune.run.card_picture import GONE, HEIGHT, LEFT_OVER
from tests import tiny
from tests.patterns import test_vocabulary
from tests.recovery.test_distill import TEXT

pytestmark = pytest.mark.usefixtures("check_in_process")


def read(folder: Path) -> tuple[dict[str, float], list[float], list[str]]:
    """Of a folder's picture: the ratio that every bar shows, by its name; the columns' shares; all words."""
    root = ElementTree.parse(folder / card_picture.FILE).getroot()
    tags = [(one.tag.rpartition("}")[2], one) for one in root.iter()]
    words = [str(one.text) for tag, one in tags if tag == "text"]
    bars = [float(one.attrib["width"]) for tag, one in tags if one.get("fill") == LEFT_OVER]
    columns = [float(one.attrib["height"]) for tag, one in tags if one.get("fill") == GONE]
    names = words[1 : 1 + 2 * len(bars) : 2]
    said = [float(one.split()[0]) for one in words[2 : 2 + 2 * len(bars) : 2]]
    longest = max(1.0, *said)
    assert [bar / max(bars) for bar in bars] == pytest.approx([one / max(said) for one in said], abs=2e-3)
    assert max(bars) == pytest.approx(280 * max(said) / longest, abs=0.5)
    return dict(zip(names, said, strict=True)), [column / HEIGHT for column in columns], words


@pytest.mark.parametrize(
    ("asked", "gone"),
    [
        ({"pattern": {"name": "blocks", "remove": [1]}}, [0, 1, 0]),
        ({"method": "magnitude", "sparsity": 0.5, "pattern": {"name": "units", "multiple": 8}}, [0.5] * 3),
        ({"method": "magnitude", "pattern": "2:4"}, [0.5] * 3),
    ],
)
def test_it_shows_what_went_and_what_is_left(
    asked: dict[str, Any], gone: list[float], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    totals = prune(checkpoints("llama"), asked, out=tmp_path / "out").totals
    bars, columns, words = read(tmp_path / "out")
    assert columns == pytest.approx(gone, abs=1e-3)
    assert bars["parameters"] == pytest.approx(
        totals["parameters_after"] / totals["parameters_before"], abs=1e-3
    )
    assert bars["weight files"] == pytest.approx(totals["bytes_after"] / totals["bytes_before"], abs=1e-3)
    assert ("parameters but zeros" in bars) == (asked.get("pattern") == "2:4")
    assert f"{100 * gone[1]:.0f}" in words and not any("last step" in one for one in words)
    assert f"]({card_picture.FILE})" in (tmp_path / "out" / "README.md").read_text()


def test_tokens_belong_to_no_block_and_steps_are_told(tmp_path: Path) -> None:
    dense, cut = test_vocabulary.save(tiny.config("llama"), tmp_path / "dense"), test_vocabulary.asked()
    prune(dense, {**TEXT, **cut}, out=tmp_path / "cut")
    bars, columns, _ = read(tmp_path / "cut")
    assert bars["parameters"] < 1 and columns == []
    prune(dense, {**TEXT, "steps": [cut, {"method": "magnitude", "sparsity": 0.6}]}, out=tmp_path / "both")
    _, columns, words = read(tmp_path / "both")
    assert len(columns) == 3 and any("by the last step" in one for one in words)


def test_what_was_measured_is_added(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), {"method": "magnitude", "sparsity": 0.8}, out=tmp_path / "out")
    names = {"baseline": str(checkpoints("llama")), "model": str(tmp_path / "out")}
    found = evaluation.evaluate(names, ["builtin"], Protocol(length=30, windows=6))
    keeping.keep(found)
    speed = {"prefill_tokens_per_s": 1.0, "decode_tokens_per_s": 1.0}
    ratios = {name: {"ratio": 1.25, "interval": [1.2, 1.3]} for name in speed}
    keeping.keep_speed(tmp_path / "out", {"protocol": "p", "models": [speed, speed], "ratios": ratios})
    bars, _, words = read(tmp_path / "out")
    bits = found["model"]["comparison"]["perplexity"][0]["bits_per_byte"]
    assert bars["bits per byte (less is better)"] == pytest.approx(bits, abs=1e-3)
    assert bars["prefill speed"] == bars["decode speed"] == 1.25
    assert words.count("1.250 [1.200, 1.300]") == 2
    low, high = found["model"]["comparison"]["perplexity"][0]["interval"]
    assert f"{bits:.3f} [{low:.3f}, {high:.3f}]" in words
