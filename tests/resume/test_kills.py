"""A run that was killed goes on to the very same bytes; nothing half-written is taken for whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.checkpoint import draft, reload, shards
from llmprune.checkpoint.draft import JOURNAL, READY, WORK
from tests.resume.children import (
    BLOCKS,
    TEXT,
    WANDA,
    Process,
    References,
    hashes,
    loads,
    require_same,
    require_unfinished,
)

PROGRAM = Path(sys.executable).with_name("llmprune")


def test_a_finished_folder_holds_what_was_promised(references: References) -> None:
    out, touched = references(WANDA)
    assert touched > 40
    assert set(load_file(out / "model-00001-of-00007.safetensors"))
    index = json.loads((out / shards.INDEX).read_text())
    assert len(set(index["weight_map"].values())) == BLOCKS + 1
    pruned = AutoModelForCausalLM.from_pretrained(out)
    assert all((layer.mlp.up_proj.weight == 0).float().mean() == 0.5 for layer in pruned.model.layers)


def test_two_uninterrupted_runs_are_alike(
    references: References, model: Path, process: Process, tmp_path: Path
) -> None:
    process(model, tmp_path / "again", WANDA, resume=False)
    require_same(tmp_path / "again", references(WANDA)[0])


CASES = [
    *(("wanda", a, p) for a in ("uniform", "owl", "global") for p in ("layer", "block", "dense")),
    *(("sparsegpt", a, p) for a in ("uniform", "owl") for p in ("layer", "block", "dense")),
    *(("magnitude", a, "layer") for a in ("uniform", "owl", "global")),
    ("admm", "uniform", "layer", "dense"),
]
MARKED = [
    pytest.param(case, id="-".join(case), marks=[pytest.mark.slow] if "owl" in case else []) for case in CASES
]


@pytest.mark.parametrize("case", MARKED)
def test_killed_between_any_two_files_it_ends_with_the_same_bytes(
    references: References,
    model: Path,
    process: Process,
    tmp_path: Path,
    case: tuple[str, ...],
) -> None:
    recipe = dict(zip(("method", "allocation", "propagation", "target"), case, strict=False))
    recipe["calibration"] = TEXT
    reference, touched = references(recipe)
    moment = random.Random(" ".join(case))
    out = tmp_path / "out"
    assert process(model, out, recipe, die_at=moment.randrange(8, touched * 3 // 4), resume=False) is None
    require_unfinished(out, model, recipe)
    assert (out / WORK / JOURNAL).read_text()
    process.finish(model, out, recipe)
    require_same(out, reference)


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    references: References, model: Path, process: Process, tmp_path: Path
) -> None:
    reference, _ = references(WANDA)
    out, kills = tmp_path / "out", 0
    while process(model, out, WANDA, die_at=5 + 2 * kills) is None:
        if not (out / "config.json").exists():
            require_unfinished(out, model, WANDA)
        kills += 1
        assert kills < 40
    assert kills >= BLOCKS
    require_same(out, reference)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(
    references: References, model: Path, process: Process, tmp_path: Path
) -> None:
    reference, _ = references(WANDA)
    start = time.monotonic()
    process(model, tmp_path / "whole", WANDA)
    whole = time.monotonic() - start
    moment, landed = random.Random(20), 0
    for number in range(20):
        out = tmp_path / str(number)
        after = whole * (number + moment.random()) / 20
        if process(model, out, WANDA, die_after=after) is None:
            if not (out / WORK / READY).exists() and not (out / "config.json").exists():
                require_unfinished(out, model, WANDA)
            landed += 1
        process.finish(model, out, WANDA)
        require_same(out, reference)
        shutil.rmtree(out)
    assert landed >= 6


@pytest.fixture(scope="module")
def ready(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off when all was written and nothing had been moved."""
    out = tmp_path_factory.mktemp("ready") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "check", loads)
        patch.setattr(draft, "move_up", lambda out: False)
        prune(model, WANDA, out=out)
    assert (out / WORK / READY).exists()
    assert [path.name for path in out.iterdir()] == [WORK]
    return out


def test_killed_while_the_files_move_it_is_repaired(
    ready: Path, references: References, model: Path, process: Process, tmp_path: Path
) -> None:
    """At every single step of the move."""
    reference, _ = references(WANDA)
    kills = 0
    while True:
        out = tmp_path / "out"
        shutil.copytree(ready, out)
        if process(model, out, WANDA, die_at=kills) is not None:
            break
        if (out / "config.json").exists():
            assert hashes(out).items() >= hashes(reference).items(), f"a half-moved checkpoint, step {kills}"
        process.finish(model, out, WANDA)
        require_same(out, reference)
        shutil.rmtree(out)
        kills += 1
    assert kills > len(hashes(reference))
    require_same(out, reference)


def test_a_journal_line_that_was_cut_off_is_dropped(
    references: References, model: Path, process: Process, tmp_path: Path
) -> None:
    reference, touched = references(WANDA)
    begun = tmp_path / "begun"
    assert process(model, begun, WANDA, die_at=touched // 3, resume=False) is None
    whole = (begun / WORK / JOURNAL).read_bytes()
    first = whole.index(b"\n")
    for cut in (0, 1, first, first + 1, first + 20, len(whole) - 1):
        out = tmp_path / str(cut)
        shutil.copytree(begun, out)
        (out / WORK / JOURNAL).write_bytes(whole[:cut])
        process.finish(model, out, WANDA)
        require_same(out, reference)


@pytest.mark.parametrize("journal", ["kept", "cut in its first line"])
def test_what_was_being_written_does_not_move_up(
    begun: Path, references: References, model: Path, process: Process, tmp_path: Path, journal: str
) -> None:
    """Safetensors writes under a hidden name, which a kill leaves behind."""
    out = tmp_path / "out"
    shutil.copytree(begun, out)
    (out / WORK / ".tmpa1B2c3").write_bytes(b"half a shard")
    if journal != "kept":
        (out / WORK / JOURNAL).write_text('{"fingerp')
    process.finish(model, out, WANDA)
    require_same(out, references(WANDA)[0])


def test_resume_of_nothing_is_a_plain_run(
    references: References, model: Path, process: Process, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    process(model, tmp_path / "out", WANDA, resume=True)
    require_same(tmp_path / "out", references(WANDA)[0])


def test_the_program_itself_survives_two_kills(
    references: References, model: Path, process: Process, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [PROGRAM, "prune", str(model), "--out", str(out), "--method", "wanda"]
    words += ["--samples", str(TEXT["samples"]), "--length", str(TEXT["length"])]
    as_here = {**os.environ, "OMP_NUM_THREADS": "1"}  # how many threads add up is part of the fingerprint

    def killed_once(reached: Path, lines: int, *more: str) -> None:
        with subprocess.Popen(
            [*words, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=as_here,
        ) as started:
            while started.poll() is None:
                if reached.exists() and reached.read_bytes().count(b"\n") >= lines:
                    break
                time.sleep(0.001)
            assert started.poll() is None, started.communicate()
            os.killpg(started.pid, signal.SIGKILL)
        assert started.returncode == -signal.SIGKILL
        require_unfinished(out, model, WANDA)

    killed_once(out / WORK / JOURNAL, 2)
    killed_once(out / WORK / "config.json", 1, "--resume")
    process.finish(model, out, WANDA)
    require_same(out, references(WANDA)[0])
