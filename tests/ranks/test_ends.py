"""A process that ends takes the others along with a sentence, and leaves a folder that resumes."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.ranks.children import AT, WHOLE, Ranks

ASKED: dict[str, Any] = {"method": "wanda", "calibration": {"samples": 100, "length": 64}}


def written(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def undisturbed(ranks: Ranks, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert ranks({"model": model, **ASKED, "out": out}) == [["done", "done"]]
    return written(out)


@pytest.mark.parametrize(
    ("who", "sentence", "others"),
    [
        (0, "another process of this run has ended", 3),  # the one where all meet
        (1, "process 1 of this run has ended or does not answer", 2),
    ],
)
def test_a_killed_rank_is_named_and_any_number_resumes(
    ranks: Ranks,
    model: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    who: int,
    sentence: str,
    others: int,
) -> None:
    asked = {"model": model, **ASKED, "out": tmp_path / "out"}
    said = ranks(asked | {"ends": (who, "killed")})[0]
    assert said[who] == ""
    assert said[1 - who] == f"JobError: {sentence}; rerun with --resume"
    assert not (tmp_path / "out" / "config.json").exists()
    assert ranks(asked | {"resume": True}, count=others) == [["done"] * others]
    assert written(tmp_path / "out") == undisturbed


def test_nothing_is_moved_while_another_rank_reads_it(
    ranks: Ranks, model: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    asked = {"model": model, **ASKED, "out": tmp_path / "out"}
    assert ranks(asked | {"ends": (0, WHOLE)})[0][0] == ""
    assert ranks(asked | {"resume": True, "ends": (1, "late")}) == [["done"] * 2]
    assert written(tmp_path / "out") == undisturbed


def test_what_one_rank_ran_into_all_of_them_say(ranks: Ranks, model: Path, tmp_path: Path) -> None:
    asked = {"model": model, **ASKED, "out": tmp_path / "out", "ends": (1, "out of memory")}
    first, second = ranks(asked)[0]
    assert second.startswith("JobError: memory ran out")
    assert first == second.replace("JobError: ", "JobError: process 1 of this run ended: ")


def test_a_rank_that_does_not_answer_is_named(ranks: Ranks, model: Path, tmp_path: Path) -> None:
    asked = {"model": model, **ASKED, "out": tmp_path / "out", "ends": (1, "asleep")}
    said = ranks(asked, patience=4)[0]
    assert said[0] == "JobError: process 1 of this run has ended or does not answer; rerun with --resume"


def test_a_rank_that_never_comes_is_missed(ranks: Ranks, model: Path, tmp_path: Path) -> None:
    asked = {"model": model, **ASKED, "out": tmp_path / "out"}
    said = ranks(asked, count=3, patience=2, started=1)[0]
    assert re.fullmatch(
        r"JobError: another process of 3 did not come to 127.0.0.1:\d+ within 2 s; .*", said[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_moment_the_rest_end_and_two_resume(
    ranks: Ranks, model: Path, tmp_path: Path, undisturbed: dict[str, bytes], seed: int
) -> None:
    lots = random.Random(seed)
    who, when = lots.randrange(2), lots.uniform(0, 2)
    asked = {"model": model, **ASKED, "out": tmp_path / "out"}
    said = ranks(asked | {"ends": (who, f"{AT}{when}")})[0]
    assert said[1 - who] == "done" or said[1 - who].endswith("rerun with --resume")
    assert ranks(asked | {"resume": True}) == [["done"] * 2]
    assert written(tmp_path / "out") == undisturbed


def test_ranks_that_were_not_asked_the_same_do_nothing(ranks: Ranks, model: Path, tmp_path: Path) -> None:
    asked = {"model": model, **ASKED, "out": tmp_path / "out"}
    others: dict[str, dict[str, Any]] = {
        "another recipe": {"sparsity": 0.3},
        "another out": {"out": tmp_path / "elsewhere"},
        "'/nowhere'": {"model": "/nowhere"},
    }
    for line, word in zip(
        ranks(*[asked | {"only": {1: one}} for one in others.values()]), others, strict=True
    ):
        assert line[0] == line[1]
        assert line[0].startswith("RequestError: ") and word in line[0]
    assert not list(tmp_path.iterdir())


def test_more_ranks_than_batches_are_refused(ranks: Ranks, model: Path, tmp_path: Path) -> None:
    few = {"samples": 20, "length": 64}
    said = ranks({"model": model, "method": "wanda", "calibration": few, "out": tmp_path / "out"})[0]
    assert said[0] == said[1]
    assert "2 processes were started" in said[0] and "make 1 of the text" in said[0]
