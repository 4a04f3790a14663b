"""A student comes closer to the dense model on other windows, keeps sizes and zeros, and resumes exactly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import prune, ranks, recover
from llmprune.checkpoint.draft import SCRATCH, WORK
from llmprune.checkpoint.opened import Opened
from llmprune.errors import JobError, RequestError
from llmprune.recovery.base import taught
from llmprune.recovery.distill import counted
from llmprune.training import cached, pace, sharded, trainer
from llmprune.training.checkpoints import COMPLETE
from llmprune.training.teacher import Teacher, Text, divergence
from llmprune.training.trainer import Course, _Trainer
from tests import tiny
from tests.recovery.test_reconstruct import PADDED, PRUNED, UNEVEN, tensors

TEXT = {"calibration": {"samples": 8, "length": 32}}
HOW: dict[str, Any] = {
    "name": "distill",
    "tokens": 1024,
    "batch_tokens": 64,
    "learning_rate": 1e-3,
    "products": "float32",
}
STUDENTS: dict[str, dict[str, Any]] = {
    "2:4": PRUNED["2:4"],
    "padded": PADDED,
    "per_layer": PRUNED["units without"] | {"allocation": UNEVEN, "layout": "per_layer"},
    "biases": PRUNED["units with biases"],
    "blocks": {"pattern": {"name": "blocks", "remove": [1]}},
}


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def pruned(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    prune(checkpoints("llama"), PRUNED["2:4"] | TEXT, out=tmp_path / "out")
    return tmp_path / "out"


@torch.no_grad()
def distance(folder: Path, dense: Path, ids: torch.Tensor) -> float:
    models = [AutoModelForCausalLM.from_pretrained(f, trust_remote_code=True).eval() for f in (dense, folder)]
    return float(Teacher(models[0])(ids, models[1](ids)))


@pytest.mark.parametrize("student", STUDENTS)
def test_it_comes_closer_and_keeps_sizes_and_zeros(
    student: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    dense, out, after = checkpoints("llama"), tmp_path / "out", tmp_path / "after"
    prune(dense, STUDENTS[student] | TEXT, out=out)
    report = recover(out, HOW, out=after)
    assert report.recovery is not None
    assert report.recovery["calibration"]["samples"] == 32 + 2
    assert len(report.recovery["losses"]) == 16
    assert report.recovery["trained_tokens"] == 1024
    card = (after / "README.md").read_text()
    assert "| recovered by | distill, 1,024 tokens of the dense model's predictions, on builtin" in card
    ids = torch.randint(3, tiny.VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(5))
    assert distance(after, dense, ids) < distance(out, dense, ids)
    old, new = tensors(out), tensors(after)
    assert {key: tensor.shape for key, tensor in old.items()} == {k: t.shape for k, t in new.items()}
    assert all((new[key][tensor == 0] == 0).all() for key, tensor in old.items() if tensor.ndim == 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_the_best_state_as_it_was_judged(
    dtype: torch.dtype, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, kept = tmp_path / "dense", []
    AutoModelForCausalLM.from_pretrained(checkpoints("llama"), dtype=dtype).save_pretrained(dense)
    AutoTokenizer.from_pretrained(checkpoints("llama")).save_pretrained(dense)
    prune(dense, PRUNED["2:4"] | TEXT, out=tmp_path / "out")
    own = trainer.train

    def noted(model: Any, lesson: Any, windows: Any, held_out: torch.Tensor, *rest: Any) -> Any:
        kept.append((done := own(model, lesson, windows, held_out, *rest), held_out))
        return done

    monkeypatch.setattr(trainer, "train", noted)
    recover(tmp_path / "out", HOW, out=tmp_path / "after", dtype="float32")
    done, held_out = kept[0]
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (dense, tmp_path / "after")
    )
    with torch.no_grad():
        losses = [float(Teacher(teacher)(ids[None], student(ids[None]))) for ids in held_out]
    assert sum(losses) / len(losses) == pytest.approx(done.end, abs=1e-5)
    assert {tensor.dtype for tensor in tensors(tmp_path / "after").values()} == {dtype}


def require_same(cut: Path, whole: Path) -> None:
    assert {path.name for path in cut.iterdir()} == {path.name for path in whole.iterdir()}
    for file in whole.glob("*.safetensors"):
        assert (cut / file.name).read_bytes() == file.read_bytes()


def test_the_default_rate_follows_the_held_out_loss_of_the_start(pruned: Path) -> None:
    record = recover(pruned, HOW | {"learning_rate": None}, out=pruned.with_name("after")).recovery
    assert record is not None
    start = record["held_out"][0]["loss"]
    assert record["rate"] == pytest.approx(1e-3 * start, rel=1e-4)
    assert record["rate"] < 2e-3


@pytest.mark.parametrize(("save_every", "first"), [(0.0, 5), (60.0, 0)])
@pytest.mark.parametrize("own", [{"learning_rate": None}, {"adapters": 2}], ids=["weights", "adapters"])
def test_an_interrupted_training_resumes_from_its_checkpoint(
    own: dict[str, Any], save_every: float, first: int, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, steps = pruned.with_name("whole"), pruned.with_name("cut"), []
    how = HOW | own
    reference = recover(pruned, how, out=whole)
    step = _Trainer.training_step

    def until_the_sixth(self: _Trainer, *rest: Any, **named: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *rest, **named)

    def noted(self: _Trainer, *rest: Any, **named: Any) -> Any:
        steps.append(self.state.global_step)
        return step(self, *rest, **named)

    monkeypatch.setattr(pace, "SAVE_EVERY", save_every)
    monkeypatch.setattr(pace, "SHARE", 1e9)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Trainer, "training_step", until_the_sixth)
        recover(pruned, how, out=cut)
    monkeypatch.setattr(_Trainer, "training_step", noted)
    report = recover(pruned, how, out=cut, resume=True)
    assert sorted(set(steps)) == list(range(first, 16))
    assert report.recovery is not None and reference.recovery is not None
    for what in ("losses", "held_out"):
        assert report.recovery[what] == reference.recovery[what]
    require_same(cut, whole)


@pytest.mark.slow
def test_killed_while_it_trains_it_resumes_to_the_same_bytes(pruned: Path) -> None:
    whole, cut = pruned.with_name("whole"), pruned.with_name("cut")
    recover(pruned, HOW, out=whole)
    code = (
        "from llmprune import recover; from llmprune.training import pace; pace.SAVE_EVERY = 0.0; "
        f"recover({str(pruned)!r}, {HOW!r}, out={str(cut)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as started:
        while started.poll() is None and not list((cut / WORK / SCRATCH).glob(f"*/*/{COMPLETE}")):
            time.sleep(0.01)
        started.kill()
    assert started.returncode == -signal.SIGKILL, started.communicate()
    recover(pruned, HOW, out=cut, resume=True)
    require_same(cut, whole)


def test_a_launcher_that_asks_for_deepspeed_is_refused(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RequestError, match="ranks: accelerate was asked for DeepSpeed; launch with"):
        recover(pruned, HOW, out=pruned.with_name("sharded"))
    assert not pruned.with_name("sharded").exists()


def test_the_first_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(RequestError, match="ranks: accelerate was asked for FSDP 1; launch with"):
        sharded.require()


def test_fsdp_on_a_cpu_is_refused() -> None:
    with pytest.raises(RequestError, match="ranks: FSDP was asked, and accelerate shards none on a CPU"):
        sharded.share(Accelerator(cpu=True), None, None)


def test_copies_that_a_host_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "neighbours", lambda: 8)
    with pytest.raises(JobError, match=r"8 processes keep 3 copies .* and [\d.]+ GiB are free; start fewer"):
        sharded.require_host(10**12)


def test_a_copy_that_waits_on_the_host_trains_where_the_student_was(
    pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: what Trainer is told, for a student that says it lies on one."""

    class Told(Exception):
        pass

    def init(self: _Trainer, model: Any, arguments: Any, *rest: Any) -> None:
        assert next(model.parameters()).device.type == "cpu"
        raise Told(arguments.use_cpu)

    student = AutoModelForCausalLM.from_pretrained(pruned)
    ids, course = torch.zeros(2, 8, dtype=torch.long), Course(rate=1e-3, windows=1)
    monkeypatch.setattr(_Trainer, "__init__", init)
    monkeypatch.setattr(sharded, "asked", lambda: True)
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(type(student), "device", torch.device(device))
        with pytest.raises(Told, match=str(device == "cpu")):
            trainer.train(student, Text(), ids, ids, course, pruned / "scratch")


def test_a_loss_that_is_no_number_is_a_sentence(pruned: Path) -> None:
    with pytest.raises(
        JobError, match=r"the loss of step \d+ is nan; start again with a lower learning rate"
    ):
        recover(pruned, HOW | {"learning_rate": 1e30}, out=pruned.with_name("nan"))


def test_a_recipe_whose_training_helped_nothing_leaves_the_pruned_model(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    how = {**TEXT, "method": "wanda", "recovery": HOW | {"learning_rate": 10.0}}
    with pytest.raises(JobError, match=r"better than the start .*; .*/out-pruned holds the pruned model"):
        prune(checkpoints("llama"), how, out=tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out-pruned")
    assert not (tmp_path / "out").exists()


def test_a_training_that_helped_nothing_is_refused(pruned: Path) -> None:
    with pytest.raises(JobError, match="no state on the way was better than the start"):
        recover(pruned, HOW | {"learning_rate": 10}, out=pruned.with_name("worse"))
    assert not pruned.with_name("worse").exists()


def test_a_model_that_does_not_fit_is_refused(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opened, "fits_whole", lambda *_: False)
    with pytest.raises(JobError, match="use reconstruct, which needs one block at a time"):
        recover(pruned, HOW, out=pruned.with_name("large"))


def test_a_log_that_cannot_be_written_is_refused(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"recovery\.report_to: input should be 'none', 'tensorboard'"):
        recover(pruned, HOW | {"report_to": "nosuch"}, out=pruned.with_name("log"))
    monkeypatch.setattr(taught, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="wandb was asked, and is not installed"):
        recover(pruned, HOW | {"report_to": "wandb"}, out=pruned.with_name("log"))
    assert not pruned.with_name("log").exists()


def test_one_window_is_refused(pruned: Path) -> None:
    with pytest.raises(RequestError, match=r"calibration\.samples: 1 was asked"):
        recover(pruned, HOW, out=pruned.with_name("one"), calibration={"samples": 1})
    assert not pruned.with_name("one").exists()


def test_fewer_tokens_than_a_step_takes_are_refused(pruned: Path) -> None:
    with pytest.raises(RequestError, match=r"recovery\.tokens: 10 were asked, and one step takes 64"):
        recover(pruned, HOW | {"tokens": 10}, out=pruned.with_name("few"))


def test_windows_that_share_text_with_held_out_ones_are_refused(pruned: Path) -> None:
    ids = torch.arange(32).repeat(8, 1) + 3
    with pytest.raises(RequestError, match="every window shares text"):
        recover(pruned, HOW, out=pruned.with_name("same"), tokens=ids)


@given(st.integers(1, 50), st.sampled_from(["k", "M"]))
def test_tokens_are_counted_in_thousands_and_millions(number: int, unit: str) -> None:
    assert counted(f"{number}{unit}") == number * {"k": 1_000, "M": 1_000_000}[unit]
    assert counted(f"0.5{unit}") == {"k": 500, "M": 500_000}[unit]
    assert counted(number) == number and counted("many") == "many"


def test_hidden_states_count_where_they_are_asked_for(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    """Blocks 0 and 2 stay: the state between them is compared with the dense one behind block 0."""
    dense, out = checkpoints("llama"), tmp_path / "out"
    prune(dense, STUDENTS["blocks"] | TEXT, out=out)
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (dense, out)]
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        theirs, ours = (model(ids, output_hidden_states=True) for model in models)
        found = Teacher(models[0], 0.5, [0, 2])(ids, ours) - Teacher(models[0])(ids, models[1](ids))
    a, b = theirs.hidden_states[1], ours.hidden_states[1]
    assert float(found) == pytest.approx(0.5 * float((a - b).norm() ** 2 / a.norm() ** 2), rel=1e-3, abs=1e-6)
    report = recover(out, HOW | {"hidden": 0.5}, out=tmp_path / "after")
    assert report.recovery is not None and report.recovery["hidden"] == 0.5


def test_hidden_states_need_the_dense_model(pruned: Path) -> None:
    with pytest.raises(RequestError, match=r"recovery\.hidden: .* needs a resident teacher"):
        recover(pruned, HOW | {"hidden": 1, "teacher": "cached"}, out=pruned.with_name("cached"))


def test_a_cached_teacher_teaches_as_a_resident_one(pruned: Path) -> None:
    """With all tokens kept, the losses are the same; with few, training helps all the same."""
    resident = recover(pruned, HOW, out=pruned.with_name("resident")).recovery
    whole = recover(pruned, HOW | {"teacher": "cached"}, out=pruned.with_name("whole")).recovery
    few = recover(pruned, HOW | {"teacher": "cached", "top": 8}, out=pruned.with_name("few")).recovery
    assert resident and whole and few
    assert whole["losses"] == pytest.approx(resident["losses"], rel=1e-4)
    assert min(look["loss"] for look in few["held_out"]) < few["held_out"][0]["loss"]
    assert not list(pruned.with_name("few").glob("*teacher*"))


@given(st.integers(1, 7), st.integers(0, 10**6))
def test_the_cut_divergence_is_that_of_merged_classes(top: int, seed: int) -> None:
    lots = torch.Generator().manual_seed(seed)
    dense, student = torch.randn(2, 5, 7, generator=lots, dtype=torch.float64).unbind()
    logs, tokens = dense.log_softmax(-1).topk(top)
    p, q = dense.softmax(-1), student.softmax(-1)
    merged = []
    for row in range(5):
        kept = tokens[row].tolist()
        others = [n for n in range(7) if n not in kept]
        pairs = [(p[row, n], q[row, n]) for n in kept]
        pairs += [(p[row, others].sum(), q[row, others].sum())] if others else []
        merged.append(sum(float(a * (a / b).log()) for a, b in pairs))
    assert float(cached.divergence(logs, tokens, student)) == pytest.approx(sum(merged) / 5, abs=1e-9)


@given(st.integers(0, 10**6))
def test_the_divergence_is_its_definition(seed: int) -> None:
    lots = torch.Generator().manual_seed(seed)
    dense, student = torch.randn(2, 5, 7, generator=lots, dtype=torch.float64).unbind()
    p, q = dense.softmax(-1), student.softmax(-1)
    assert float(divergence(dense, student)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))
