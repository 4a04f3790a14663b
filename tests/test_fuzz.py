"""Whatever comes from outside may be broken: one sentence, no traceback, nothing written beside the output.

Every file is mutated by a seed: bytes change, are cut, doubled or inserted, and values of JSON are replaced.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmprune import prune
from llmprune.export.gguf import export
from tests.cli import command
from tests.export.test_gguf import saved

FEW, MANY = 6, 1000  # mutations of a file
ABOVE = 256 << 20  # bytes of memory that reading one may take
SECONDS = 60  # and the time, on a busy machine
VALUES: list[Any] = [None, -1, 0, 2**63, 1e308, "", "x" * 1000, [], {}, [[]], True, "../../etc/passwd"]
# By file, the command that reads it; `out` is what it may write.
READ: dict[str, list[str]] = {
    "config.json": ["inspect", "{folder}", "--samples", "2", "--length", "16"],
    "tokenizer.json": [
        *("prune", "{folder}", "--pattern", "vocabulary", "--set", "pattern.keep=384"),
        *("--calibration", "builtin", "--out", "{out}"),
    ],
    "model.safetensors": ["inspect", "{folder}", "--samples", "2", "--length", "16"],
    "llmprune_report.json": ["report", "{folder}", "--out", "{out}.html"],
    "recipe.yaml": ["inspect", "{folder}", "--recipe", "{folder}/recipe.yaml"],
    "like.gguf": ["export", "{folder}", "--like", "{folder}/like.gguf", "--out", "{out}.gguf"],
    "input.gguf": ["bench", "{folder}/input.gguf", "--prompt", "4", "--new-tokens", "1", "--batch", "2"],
}


def mutated(data: bytes, lots: random.Random) -> bytes:
    """One change of a file, mostly near its beginning, where headers are."""
    place = min(lots.randrange(len(data)), lots.randrange(len(data)))
    size = lots.choice([1, 2, 8, 64])
    kind = lots.randrange(5)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + lots.randbytes(size) + data[place + size :]
    if kind == 2:
        return data[:place] + lots.randbytes(size) + data[place:]
    if kind == 3:
        return data[:place] + data[max(0, place - size) :]
    return data[:place] + b"\xff" * size + data[place + size :]


def replaced(data: bytes, lots: random.Random) -> bytes:
    """One value of a JSON document changed, or its key gone."""
    whole = json.loads(data)
    at: Any = whole
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = lots.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and lots.random() < 0.7:
            at = at[key]
            continue
        if lots.random() < 0.2:
            del at[key]
        else:
            at[key] = lots.choice(VALUES)
        return json.dumps(whole).encode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned folder with every file that is read from outside."""
    place = tmp_path_factory.mktemp("fuzz")
    folder = place / "whole"
    prune(saved("llama", place / "dense"), {"method": "magnitude", "sparsity": 0.5}, out=folder)
    for name in ("like.gguf", "input.gguf"):
        export(folder, place / name, "f32")
        (place / name).rename(folder / name)
    shard = next(folder.glob("*.safetensors"))
    shard.rename(folder / "model.safetensors") if len(list(folder.glob("*.safetensors"))) == 1 else None
    return folder


def files_of(place: Path) -> Iterator[str]:
    return (str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


class Hangs(BaseException):
    """Nothing that is asked here takes so long; no handler of errors takes it for one."""


@contextmanager
def within(seconds: int, number: int) -> Iterator[None]:
    """Stop a mutation that takes longer."""

    def stop(*_: object) -> None:
        raise Hangs(f"mutation {number}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("check_in_process", "models_forked")
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("name", READ)
def test_a_broken_file_is_one_sentence(
    name: str, many: bool, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lots = random.Random(name)
    folder = tmp_path / "folder"
    shutil.copytree(whole, folder)
    file = next(folder.glob(name.replace("model.", "model*.")))
    data, before = file.read_bytes(), set(files_of(tmp_path))
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "out-cache"))
    process = psutil.Process()
    for number in range(MANY if many else FEW):
        values = file.suffix == ".json" and number % 2 == 0
        file.write_bytes((replaced if values else mutated)(data, lots))
        out = tmp_path / f"out-{number}"
        memory = process.memory_info().rss
        words = [word.format(folder=folder, out=out) for word in READ[name]]
        with within(SECONDS, number):
            code = command.main(monkeypatch, words)
        said = capsys.readouterr().err.strip().splitlines()
        assert code in (0, 1, 2, None), (number, code)
        assert not code or said[-1].startswith("llmprune: "), (number, said[-5:])
        assert process.memory_info().rss - memory < ABOVE
        left = {path for path in files_of(tmp_path) if not path.startswith("out-")}
        assert left == before
