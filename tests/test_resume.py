"""A run that was killed, or ran out of disk, goes on to the very same bytes; nothing half-written is taken
for whole."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from llmprune import prune
from llmprune import report as reports
from llmprune.checkpoint import draft, reload, shards
from llmprune.checkpoint.draft import JOURNAL, READY, WORK, Draft
from llmprune.errors import JobError, RequestError
from llmprune.report import Report
from tests import tiny

PROGRAM = Path(sys.executable).with_name("llmprune")
BLOCKS = 6
TEXT = {"samples": 6, "length": 32}
WANDA: dict[str, Any] = {"method": "wanda", "calibration": TEXT}
VARYING = ("llmprune_report.json", "README.md")  # they tell times and sizes of memory
WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}
CHECKED = {"line": "load({folder})", "compared": "logits", "max_abs_logit_difference": 0.0}


def loads(folder: Path, *_: object) -> dict[str, Any]:
    """In place of the fresh process of `reload.check`."""
    AutoModelForCausalLM.from_pretrained(folder)
    return dict(CHECKED)


def changes(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    """Whether an audit event changes something in a folder; `rmtree` names files by their last part."""
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return False
    return str(folder) in str(arguments[0]) or (event in ("os.remove", "os.rmdir") and arguments[1] != -1)


def child(
    notes: Path, model: Path, out: Path, recipe: dict[str, Any], die_at: int | None, resume: bool
) -> None:
    """A process that prunes, notes its outcome, and may die just before it changes a file there.

    Args:
        notes: a folder for what it has to say.
        model: the checkpoint.
        out: the folder to write.
        recipe: what is asked.
        die_at: how many changes it may make in `out` and live; None for as many as it needs.
        resume: whether it goes on with what is there.
    """
    torch.set_num_threads(1)
    reload.check = loads
    touched = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in WATCHED and changes(event, arguments, out):
            if touched == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            touched += 1

    outcome: dict[str, Any] = {}
    log = (notes / "log").open("w")
    os.dup2(log.fileno(), 2)
    sys.addaudithook(watch)
    try:
        prune(model, recipe, out=out, resume=resume)
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome["touched"] = touched
    (notes / "outcome").write_text(json.dumps(outcome))


class Process:
    """Starts children from one process that has imported everything; a child costs no start-up."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["tests.test_resume", "transformers.models.llama.modeling_llama"]
        )

    def __call__(
        self,
        model: Path,
        out: Path,
        recipe: dict[str, Any],
        *,
        die_at: int | None = None,
        die_after: float | None = None,
        resume: bool = True,
    ) -> dict[str, Any] | None:
        """The outcome of one child, or None if it was killed."""
        log, outcome = self._notes / "log", self._notes / "outcome"
        log.unlink(missing_ok=True)
        process = self._context.Process(target=child, args=(self._notes, model, out, recipe, die_at, resume))
        process.start()
        if die_after is not None:
            while process.is_alive() and not log.exists():
                time.sleep(0.001)
            process.join(die_after)
            process.kill()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode:
            return None
        said: dict[str, Any] = json.loads(outcome.read_text())
        return said

    def finish(self, model: Path, out: Path, recipe: dict[str, Any], *, resume: bool = True) -> int:
        """How many changes a child made in `out` that went on to the end."""
        outcome = self(model, out, recipe, resume=resume)
        assert outcome is not None
        assert "error" not in outcome, outcome["error"]
        touched: int = outcome["touched"]
        return touched


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As many as the children have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Process:
    return Process(tmp_path_factory.mktemp("notes"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of six blocks whose inputs, outputs and blocks all differ in scale."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = tiny.config("llama")
    config.num_hidden_layers = BLOCKS
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=0.1 + 0.02 * number)
    made.save_pretrained(folder, max_shard_size="60KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder, but for those that vary."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in VARYING]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def report_of(folder: Path) -> dict[str, Any]:
    """The report without what varies from run to run."""
    report: dict[str, Any] = json.loads((folder / "llmprune_report.json").read_text())
    report["reload"].pop("line")  # it names the folder
    return {key: value for key, value in report.items() if key not in ("time", "memory")}


class References:
    """Uninterrupted runs, made when they are first asked for, and how many changes each made."""

    def __init__(self, root: Path, model: Path, process: Process) -> None:
        self._root, self._model, self._process = root, model, process
        self._made: dict[str, tuple[Path, int]] = {}

    def __call__(self, recipe: dict[str, Any]) -> tuple[Path, int]:
        key = json.dumps(recipe)
        if key not in self._made:
            out = self._root / str(len(self._made))
            self._made[key] = out, self._process.finish(self._model, out, recipe, resume=False)
        return self._made[key]


@pytest.fixture(scope="module")
def references(model: Path, process: Process, tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("references"), model, process)


def require_unfinished(out: Path, model: Path, recipe: dict[str, Any]) -> None:
    """What was cut off is no checkpoint, and is not written over unless asked."""
    assert not (out / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        AutoConfig.from_pretrained(out)
    if out.exists():
        with pytest.raises(RequestError, match="go on with --resume") as raised:
            prune(model, recipe, out=out)
        assert raised.value.field == "out"


def require_same(out: Path, reference: Path) -> None:
    """`out` is the finished checkpoint that an uninterrupted run writes."""
    assert not (out / WORK).exists()
    assert hashes(out) == hashes(reference)
    assert report_of(out) == report_of(reference)
    assert {path.name for path in out.iterdir()} == {path.name for path in reference.iterdir()}


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
]


@pytest.mark.parametrize("case", CASES, ids=["-".join(case) for case in CASES])
def test_killed_between_any_two_files_it_ends_with_the_same_bytes(
    references: References,
    model: Path,
    process: Process,
    tmp_path: Path,
    case: tuple[str, str, str],
) -> None:
    method, allocation, propagation = case
    recipe = {"method": method, "allocation": allocation, "propagation": propagation, "calibration": TEXT}
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


@pytest.fixture(scope="module")
def begun(
    model: Path, process: Process, references: References, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was killed half-way; not to be gone on with."""
    out = tmp_path_factory.mktemp("begun") / "out"
    assert process(model, out, WANDA, die_at=references(WANDA)[1] // 4, resume=False) is None
    assert 2 <= len((out / WORK / JOURNAL).read_text().splitlines()) <= BLOCKS
    return out


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "check", loads)


CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "magnitude"},
    "sparsity": {"sparsity": 0.6},
    "pattern": {"pattern": "2:4"},
    "allocation": {"allocation": "erk"},
    "propagation": {"propagation": "block"},
    "seed": {"calibration": {**TEXT, "seed": 1}},
    "samples": {"calibration": {**TEXT, "samples": 5}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_recipe_does_not_go_on(
    begun: Path, model: Path, in_process: None, change: dict[str, Any]
) -> None:
    before = hashes(begun)
    with pytest.raises(RequestError, match="was begun with another recipe") as raised:
        prune(model, {**WANDA, **change}, out=begun, resume=True)
    assert raised.value.field == "resume"
    assert "\n" not in str(raised.value)
    assert hashes(begun) == before


@pytest.mark.parametrize("change", ["sparsity", "seed"])
def test_what_differs_is_told_with_both_values(
    begun: Path, model: Path, in_process: None, change: str
) -> None:
    with pytest.raises(RequestError, match=change):
        prune(model, {**WANDA, **CHANGES[change]}, out=begun, resume=True)


def test_another_dtype_does_not_go_on(begun: Path, model: Path, in_process: None) -> None:
    with pytest.raises(RequestError, match=r"another dtype \(\"float32\", now \"bfloat16\"\)"):
        prune(model, WANDA, out=begun, resume=True, dtype="bfloat16")


def test_another_model_does_not_go_on(begun: Path, model: Path, in_process: None, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    with pytest.raises(RequestError, match="was begun with another model"):
        prune(other, WANDA, out=begun, resume=True)


def test_other_weights_do_not_go_on(
    begun: Path, model: Path, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sorted(model.glob("*.safetensors"))[0]
    own = shards.sha256
    monkeypatch.setattr(shards, "sha256", lambda f: "0" * 64 if f.name == file.name else own(f))
    with pytest.raises(RequestError, match="was begun with another weights") as raised:
        prune(model, WANDA, out=begun, resume=True)
    assert file.name in str(raised.value)


def test_other_versions_do_not_go_on(
    begun: Path, model: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = reports.versions()
    monkeypatch.setattr(reports, "versions", lambda: {**versions, "torch": "1.0"})
    with pytest.raises(RequestError, match="was begun with another versions"):
        prune(model, WANDA, out=begun, resume=True)


def test_a_shard_that_is_gone_is_one_sentence(
    begun: Path, model: Path, in_process: None, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    (out / WORK / "model-00001-of-00007.safetensors").unlink()
    with pytest.raises(JobError, match="model-00001-of-00007"):
        prune(model, WANDA, out=out, resume=True)
    assert not (out / "config.json").exists()


def test_a_finished_folder_is_left_as_it_is(
    references: References, model: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = references(WANDA)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    report = prune(model, WANDA, out=out, resume=True)
    assert isinstance(report, Report)
    assert report.totals["sparsity"] == 0.5
    assert "is finished already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_folder_is_not_taken_for_another_recipe(
    references: References, model: Path, in_process: None, change: str
) -> None:
    out, _ = references(WANDA)
    before = hashes(out)
    with pytest.raises(RequestError, match="was finished with another") as raised:
        prune(model, {**WANDA, **CHANGES[change]}, out=out, resume=True)
    assert raised.value.field == "resume"
    assert hashes(out) == before


def test_a_finished_folder_is_not_taken_for_another_model(
    references: References, model: Path, in_process: None, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    with pytest.raises(RequestError, match="another model"):
        prune(other, WANDA, out=references(WANDA)[0], resume=True)


def test_a_finished_folder_is_not_written_over(references: References, model: Path) -> None:
    with pytest.raises(RequestError, match="is not empty; name a folder") as raised:
        prune(model, WANDA, out=references(WANDA)[0])
    assert raised.value.field == "out"


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
            assert started.poll() is None, started.communicate()
            os.killpg(started.pid, signal.SIGKILL)
        assert started.returncode == -signal.SIGKILL
        require_unfinished(out, model, WANDA)

    killed_once(out / WORK / JOURNAL, 2)
    killed_once(out / WORK / "config.json", 1, "--resume")
    process.finish(model, out, WANDA)
    require_same(out, references(WANDA)[0])


SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a mebibyte."""
    if os.geteuid():
        pytest.skip("mounting a small disk takes root")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place]).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(place: Path, leave: int) -> Path:
    """Take all of a disk but some bytes."""
    hog = place / "hog"
    hog.write_bytes(b"\0" * max(0, shutil.disk_usage(place).free - leave))
    return hog


STEPS = ["begin", "write_block", "write_rest", "write_text", "copy"]


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    references: References,
    model: Path,
    disk: Path,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Something else fills the disk just before one step of the run."""
    out, calls = disk / "out", 0
    own = getattr(Draft, step)

    def filled(self: Draft, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (3 if step == "write_block" else 1):
            fill(disk, 0)
        return own(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, step, filled)
        with pytest.raises((JobError, RequestError)) as raised:
            prune(model, WANDA, out=out)
    assert "\n" not in str(raised.value)
    assert str(out) in str(raised.value)
    assert not (out / "config.json").exists()
    (disk / "hog").unlink()
    monkeypatch.setattr(reload, "check", loads)
    prune(model, WANDA, out=out, resume=True)
    require_same(out, references(WANDA)[0])


def test_a_run_that_is_gone_on_with_needs_room_for_the_rest_only(
    references: References, model: Path, disk: Path, process: Process
) -> None:
    out = disk / "out"
    reference, touched = references(WANDA)
    process(model, out, WANDA, die_at=touched // 3, resume=False)
    written = sum(path.stat().st_size for path in (out / WORK).iterdir())
    weights = sum(path.stat().st_size for path in reference.glob("*.safetensors"))
    assert written > weights // 4
    fill(disk, weights - 1000)
    process.finish(model, out, WANDA)
    require_same(out, reference)


def test_a_disk_too_small_is_refused_before_anything_is_written(model: Path, disk: Path) -> None:
    fill(disk, 50_000)
    with pytest.raises(JobError, match=r"needs .* of disk"):
        prune(model, WANDA, out=disk / "out")
    assert [path.name for path in disk.iterdir()] == ["hog"]


def damaged(model: Path, folder: Path, key: str, value: float) -> Path:
    """The model with one wrong number in the weight `key`."""
    shutil.copytree(model, folder)
    file = folder / json.loads((model / shards.INDEX).read_text())["weight_map"][key]
    tensors = load_file(file)
    tensors[key].view(-1)[3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("allocation", ["uniform", "owl"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_is_named(
    model: Path, tmp_path: Path, in_process: None, method: str, allocation: str, value: float
) -> None:
    bad = damaged(model, tmp_path / "bad", "model.layers.3.mlp.up_proj.weight", value)
    before = hashes(bad)
    out = tmp_path / "out"
    with pytest.raises(JobError, match=r"model\.layers\.3\.mlp\.up_proj holds NaN or infinity") as raised:
        prune(bad, {**WANDA, "method": method, "allocation": allocation}, out=out)
    assert "\n" not in str(raised.value)
    assert not (out / "config.json").exists()
    assert hashes(bad) == before


def test_damaged_activations_are_named(model: Path, tmp_path: Path, in_process: None) -> None:
    bad = damaged(model, tmp_path / "bad", "model.layers.2.input_layernorm.weight", float("nan"))
    with pytest.raises(JobError, match=r"activations that enter model\.layers\.2\.self_attn"):
        prune(bad, WANDA, out=tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_shard_that_cannot_be_read_is_named_before_anything_is_written(
    model: Path, tmp_path: Path, damage: str
) -> None:
    bad = Path(shutil.copytree(model, tmp_path / "bad"))
    file = sorted(bad.glob("model-*.safetensors"))[2]
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 100)
    else:
        file.unlink()
    with pytest.raises(JobError, match=rf"{file.name} is {damage}"):
        prune(bad, WANDA, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_touched(model: Path, in_process: None, tmp_path: Path) -> None:
    before = hashes(model), {path: path.stat().st_mtime_ns for path in model.iterdir()}
    for number, recipe in enumerate((WANDA, {**WANDA, "method": "sparsegpt", "allocation": "owl"})):
        prune(model, recipe, out=tmp_path / str(number))
    assert before == (hashes(model), {path: path.stat().st_mtime_ns for path in model.iterdir()})


@pytest.mark.parametrize("error", [RuntimeError("it does not load"), RuntimeError("")])
def test_a_result_that_does_not_load_is_not_published(
    model: Path, references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = tmp_path / "out"
    monkeypatch.setattr(reload, "check", fail)
    with pytest.raises(JobError, match="does not load as it should"):
        prune(model, WANDA, out=out)
    require_unfinished(out, model, WANDA)
    monkeypatch.setattr(reload, "check", loads)
    prune(model, WANDA, out=out, resume=True)
    require_same(out, references(WANDA)[0])


def test_a_stranger_in_the_folder_is_left_alone(model: Path, begun: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"holds notes\.txt, which no run of llmprune left there"):
        prune(model, WANDA, out=out, resume=True)
    assert draft.is_unfinished(out)
    assert (out / "notes.txt").read_text() == "mine"
