"""The parts of a model are measured once for a device, and recipes are solved by the seconds they take."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from llmprune_eval import blocks
from llmprune_eval.blocks import LOAD, Latencies

from llmprune.checkpoint import source
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from llmprune.planning.candidates import candidates
from llmprune.planning.prices import bytes_of, in_seconds
from llmprune.planning.speed import latencies, speed
from llmprune.planning.target import ENGINES, parse
from llmprune.run.asked import Run
from tests import tiny
from tests.cli.command import main
from tests.export.test_gguf import saved

IN_LLAMA_CPP = parse("1.3x-decode", "llama.cpp")
TAKEN = Latencies(token_s=0.04, block=0.1, channels=0.06, row=0.0, protocol="made up")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six pairs of four tokens."""
    monkeypatch.setattr(blocks, "LOAD", dataclasses.replace(LOAD, new_tokens=4, repeats=6))


@pytest.mark.usefixtures("few")
def test_the_parts_of_a_token_are_shares_of_it(checkpoints: tiny.Checkpoints) -> None:
    found = blocks.measure(str(checkpoints("llama")), device="cpu", dtype="float32", trust=False)
    assert found.token_s > 0
    assert 0 < found.block < 1  # a third of the blocks is most of a model without a vocabulary
    assert 0 <= found.channels <= found.block
    assert 0 <= found.row < 1 / tiny.VOCABULARY


@pytest.mark.usefixtures("few")
def test_a_second_target_measures_nothing(
    checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, run = source.find(str(checkpoints("llama"))), Run(device="cpu")
    asked = found, run, parse("1.3x-decode"), bytes_of(found)
    first = latencies(*asked)
    monkeypatch.delattr(blocks, "measure")
    assert latencies(*asked) == first


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A model that llama.cpp takes, to be measured twice."""
    pytest.importorskip("xllamacpp", reason="needs xllamacpp==2026.10.11549: pip install it")
    monkeypatch.setattr("llmprune.planning.speed.LOAD", dataclasses.replace(LOAD, repeats=2, seconds=0.0))
    return source.find(str(saved("llama", tmp_path / "model")))


@pytest.mark.usefixtures("models_forked")
def test_in_llama_cpp_parts_take_their_shares_of_the_bytes_that_a_token_reads(exported: Source) -> None:
    found, prices = exported, bytes_of(exported)
    taken = latencies(found, Run(device="cpu"), IN_LLAMA_CPP, prices)
    assert taken.token_s > 0 and "llama.cpp" in taken.protocol
    sizes = {key: one.bytes for key, one in found.tensors.items()}
    read = sum(sizes.values()) - sizes.get("lm_head.weight", 0)
    inside = sum(size for key, size in sizes.items() if ".layers.0." in key)
    assert taken.block == pytest.approx(inside / read)
    assert taken.row * prices.rows == pytest.approx(sizes["model.embed_tokens.weight"] / read)


@pytest.mark.slow
@pytest.mark.usefixtures("models_forked")
def test_a_model_beside_itself_is_as_fast_in_llama_cpp(exported: Source) -> None:
    assert 0.4 < speed(exported, exported.folder, Run(device="cpu"), IN_LLAMA_CPP) < 2.5
    assert [path.name for path in exported.folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_that_is_not_there_is_refused(engine: str, checkpoints: tiny.Checkpoints) -> None:
    found = source.find(str(checkpoints("llama")))
    with pytest.raises(RequestError, match="device: 'cuda:99' was asked"):
        latencies(found, Run(device="cuda:99"), parse("1.3x-decode", engine), bytes_of(found))


def test_an_engine_that_is_not_there_is_refused(
    checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmprune_eval.engine.is_there", lambda: False)
    found = source.find(str(checkpoints("llama")))
    with pytest.raises(RequestError, match=r"engine: llama\.cpp was asked, and is not installed"):
        latencies(found, Run(device="cpu"), IN_LLAMA_CPP, bytes_of(found))


def test_recipes_are_solved_by_seconds(checkpoints: tiny.Checkpoints) -> None:
    prices = in_seconds(dataclasses.replace(bytes_of(source.find(str(checkpoints("llama")))), step=4), TAKEN)
    prices = dataclasses.replace(prices, blocks=8, removable=6)
    found = {one.name: one for one in candidates(prices, parse("1.25x-decode"))}
    assert set(found) == {"width", "depth", "depth and width"}
    assert found["depth"].blocks == 2  # each a tenth of the time
    assert found["width"].inner == pytest.approx(0.2 / (8 * 0.06))
    with pytest.raises(RequestError, match=r"the nearest that this model reaches is .*x-decode"):
        candidates(prices, parse("9x-decode"))


@pytest.mark.usefixtures("models_forked")
def test_a_model_beside_itself_is_as_fast(
    checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmprune.planning.speed.LOAD", dataclasses.replace(LOAD, repeats=2, seconds=0.0))
    model = checkpoints("llama")
    target = parse("1.3x-decode")
    assert 0.5 < speed(source.find(str(model)), model, Run(device="cpu"), target) < 2


@pytest.mark.usefixtures("few")
def test_a_command_shows_the_parts(
    checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(checkpoints("llama")), "--blocks", "--device", "cpu"]
    assert main(monkeypatch, [*words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"token_s", "block", "channels", "row", "protocol"}


def test_blocks_of_several_sizes_are_refused(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for file in checkpoints("llama").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["per_layer_config"] = {"1": {"intermediate_size": 32}}
    settings["allow_global_per_layer_attribute_access"] = True
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RequestError, match="differ in size"):
        blocks.measure(str(tmp_path / "model"), device="cpu", dtype="float32", trust=False)
