"""Which configuration a kernel runs with: a known one, a searched one, or the default."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from llmprune_kernels import tuning

CUDA = torch.device("cuda")
SHAPE = (3, 64, 128)
KEY = "kernel 8 64 128"


@pytest.fixture(autouse=True)
def _card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "card", lambda device: "a-card")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tuning._known.cache_clear()


def pick(device: torch.device = CUDA) -> tuning.Config:
    def cuts(best: tuning.Config) -> list[tuning.Config]:
        return [best | {"A": 2}, best | {"A": 3}]

    def shares(best: tuning.Config) -> list[tuning.Config]:
        return [best | {"B": 1}]

    return tuning.pick("kernel", SHAPE, device, {"A": 1, "B": 0}, (cuts, shares), lambda config: None)


def test_nothing_is_searched_unasked() -> None:
    assert pick() == {"A": 1, "B": 0}


def test_a_known_configuration_serves(tmp_path: Path) -> None:
    file = tmp_path / "kernels" / "a-card.json"
    file.parent.mkdir()
    file.write_text(json.dumps({KEY: {"A": 9}}))
    assert pick() == {"A": 9} and pick(torch.device("cpu")) == {"A": 1, "B": 0}


def test_what_a_search_finds_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    monkeypatch.setenv("LLMPRUNE_AUTOTUNE", "1")
    times = {(1, 0): 3.0, (2, 0): 1.0, (3, 0): 2.0, (2, 1): 0.5}
    tried = []

    def timed(run: partial[None]) -> float:
        tried.append((run.args[0]["A"], run.args[0]["B"]))
        return times[tried[-1]]

    monkeypatch.setattr(tuning, "_milliseconds", timed)
    best = {"A": 2, "B": 1}
    assert pick() == best and tried == [(1, 0), (2, 0), (3, 0), (2, 0), (2, 1)]
    assert json.loads((tmp_path / "kernels" / "a-card.json").read_text()) == {KEY: best}
    assert pick() == best and len(tried) == 5
    tuning._known.cache_clear()
    assert pick() == best and len(tried) == 5  # read back from the file


def test_buckets_and_splits() -> None:
    assert [tuning.bucket(m) for m in (1, 2, 8, 9, 4096, 5000)] == [1, 8, 8, 16, 4096, 8192]
    assert [tuning.splits_for(programs, 8) for programs in (1, 64, 132, 264, 1000)] == [8, 4, 2, 1, 1]
    assert [tuning.power_of_two(n) for n in (0, 1, 3, 8)] == [1, 1, 4, 8]


FILES = [*(Path(tuning.__file__).parent / "configs").glob("*.json")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_shipped_for_a_card_can_be_started(file: Path) -> None:
    for key, config in json.loads(file.read_text()).items():
        kernel, m, n, k = key.split()
        assert int(m) in tuning.BUCKETS
        assert {*config} in forms(kernel, int(m), int(n), int(k)), key


def forms(kernel: str, m: int, n: int, k: int) -> list[set[str]]:
    """The names that a configuration of a kernel has."""
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    from llmprune_kernels.dense import launch as dense
    from llmprune_kernels.sp24 import launch as sparse

    x, halves = torch.empty(m, k, device="meta"), int(kernel[-1])
    if kernel.startswith("dense"):
        job = dense.DenseJob(x=x, n=n // halves, halves=halves, weight=torch.empty(n, k, device="meta"))
        return [{*dense.default(job)}]
    values, meta = torch.empty(n // 16, k // 32, 32, 4), torch.empty(n // 16, k // 64, 32)
    packed = sparse.Sp24Job(x=x, n=n // halves, halves=halves, values=values, meta=meta)
    return [{*sparse.skinny_default(packed)}, {*sparse.portable_default(packed)}]
