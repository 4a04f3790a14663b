"""Which widths and heads divide, as engines need them, and a pattern that keeps them so."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.export import layers
from llmprune.export.fits import fits
from tests import tiny
from tests.cli import command

pytestmark = pytest.mark.usefixtures("check_in_process")


def said(folder: Path, engine: str) -> dict[str, str]:
    return {one.what: one.why for one in fits(layers.read(folder), engine)}


def verdicts(folder: Path, engine: str) -> dict[str, bool]:
    return {one.what: one.fits for one in fits(layers.read(folder), engine)}


def test_rows_that_llama_cpp_quantises(checkpoints: tiny.Checkpoints) -> None:
    found = verdicts(checkpoints("llama"), "gguf")  # 32 hidden, 4 heads of 8, 48 channels
    assert found == {"architecture": True, "q8_0 and q4_0, rows of 32": False, "K-quants, rows of 256": False}
    assert (
        "block 0 has 48, and 3 of 3 blocks" in said(checkpoints("llama"), "gguf")["q8_0 and q4_0, rows of 32"]
    )
    assert "pattern.multiple=32" in said(checkpoints("llama"), "gguf")["q8_0 and q4_0, rows of 32"]


def test_what_ranks_share(checkpoints: tiny.Checkpoints) -> None:
    assert all(verdicts(checkpoints("llama"), "vllm").values())
    found = verdicts(checkpoints("llama"), "vllm:4")
    assert found == {
        "heads, 4 ranks": True,
        "key and value heads, 4 ranks": False,
        "channels, 4 ranks": True,
        "rows of the vocabulary, 4 ranks": True,
    }


def test_a_multiple_of_key_and_value_heads_is_kept(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    asked = {
        "method": "flap",
        "sparsity": 0.2,
        "pattern": {"name": "units", "multiple": 16, "kv_multiple": 2},
        "calibration": {"samples": 4, "length": 32},
    }
    prune(checkpoints("llama"), asked, out=tmp_path / "out")
    found = layers.read(tmp_path / "out")
    assert all(kv % 2 == 0 for kv in found.kv) and all(width % 16 == 0 for width in found.width)
    assert all(verdicts(tmp_path / "out", "vllm:2").values())
    too_many = asked | {"pattern": {"name": "units", "kv_multiple": 3}}
    with pytest.raises(RequestError, match=r"kv_multiple: 3 was asked, and .* has 2 groups of heads"):
        prune(checkpoints("llama"), too_many, out=tmp_path / "no")


@pytest.mark.parametrize("engine", ["tpu", "vllm:0", "vllm:x", "gguf:2", ""])
def test_an_unknown_engine_is_named(engine: str, checkpoints: tiny.Checkpoints) -> None:
    with pytest.raises(RequestError, match="ask for gguf, vllm or vllm:RANKS"):
        fits(layers.read(checkpoints("llama")), engine)


def test_a_family_that_is_not_known_is_named(checkpoints: tiny.Checkpoints) -> None:
    with pytest.raises(RequestError, match="the sizes of opt models are not known"):
        fits(layers.read(checkpoints("opt")), "vllm:2")


def test_the_command_line_says_so(
    checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(monkeypatch, ["inspect", str(checkpoints("llama")), "--for", "gguf"]) == 0
    assert "K-quants, rows of 256" in capsys.readouterr().out
    assert command.main(monkeypatch, ["inspect", str(checkpoints("llama")), "--for", "tpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
