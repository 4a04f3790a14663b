"""A run says whether its windows begin with BOS, and reads what was written before it could say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmprune import prune, recover
from tests import tiny

ASKED: dict[str, Any] = {"method": "wanda", "pattern": "2:4", "calibration": {"samples": 4, "length": 16}}


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose tokenizer begins a text with BOS."""
    folder = tiny.save("llama", tmp_path / "model")
    tiny.tokenizer("<s> $A").save_pretrained(folder)
    return folder


def test_report_recipe_and_card_say_which(model: Path, tmp_path: Path) -> None:
    text = ASKED["calibration"]
    said = {}
    for asked in ("auto", True, False):
        out = tmp_path / f"out-{asked}"
        report = prune(model, ASKED | {"calibration": text | {"bos": asked}}, out=out)
        assert report.calibration is not None and report.fingerprint is not None
        assert report.calibration["length"] == 16
        assert report.fingerprint["calibration"] == report.calibration
        assert report.recipe["calibration"]["bos"] == asked
        assert yaml.safe_load((out / "recipe.yaml").read_text())["calibration"]["bos"] == asked
        card = (out / "README.md").read_text()
        assert ("windows of 16 tokens, BOS in front of each" in card) == report.calibration["bos"]
        said[asked] = (report.calibration["bos"], report.calibration["sha256"])
    assert said["auto"] == said[True]
    assert said["auto"][0] and not said[False][0]
    assert said["auto"][1] != said[False][1]


def test_the_caller_s_tokens_are_taken_as_they_are(model: Path, tmp_path: Path) -> None:
    tokens = torch.arange(10, 42).reshape(2, 16)
    found = []
    for bos in ("auto", True):
        asked = ASKED | {"calibration": {"bos": bos}}
        found.append(prune(model, asked, tokens=tokens, out=tmp_path / str(bos)).calibration)
    assert found[0] == found[1]
    assert found[0] is not None and "bos" not in found[0] and found[0]["tokens"] == 32


def test_a_folder_of_before_is_known_again_and_recovered(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune(model, ASKED, out=out)
    file = out / "llmprune_report.json"
    report = json.loads(file.read_text())
    for told in (report["calibration"], report["recipe"]["calibration"]):
        del told["bos"]
    file.write_text(json.dumps(report))
    again = prune(model, ASKED, out=out, resume=True)
    assert again.calibration is not None and "bos" not in again.calibration
    done = recover(out, "reconstruct")
    assert done.recovery is not None and done.recovery["calibration"]["bos"] is True
    assert recover(out, "reconstruct", resume=True).recovery == done.recovery
