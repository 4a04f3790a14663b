"""The divergence of two models is its definition, as a whole and by quarters of the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmprune_eval import agreement, bootstrap, evaluation, figures, gate, keeping, logits, page
from llmprune_eval.plots import Chart
from llmprune_eval.runs import read_all
from llmprune_eval.windows import Protocol, settled, windows_of
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import prune
from tests import tiny
from tests.patterns import test_vocabulary
from tests.recovery.test_distill import TEXT

pytestmark = pytest.mark.usefixtures("check_in_process")


@torch.no_grad()
@pytest.mark.parametrize("rows", [7, 256])
def test_quarters_are_those_of_the_definition(
    rows: int, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "ROWS", rows)
    prune(checkpoints("llama"), {"method": "magnitude", "sparsity": 0.8}, out=tmp_path / "out")
    folders = checkpoints("llama"), tmp_path / "out"
    dense, pruned = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    protocol = Protocol(length=30, windows=6)
    found = agreement.measure((dense, pruned), tiny.tokenizer(), "builtin", protocol)
    lost = []
    for window in windows_of(tiny.tokenizer(), "builtin", settled(protocol, tiny.tokenizer(), dense.config)):
        p, q = (model(window.ids[None]).logits[0, :-1].log_softmax(-1) for model in (dense, pruned))
        lost.append(kl_div(q, p, log_target=True, reduction="none").sum(-1))
    every = torch.stack(lost)
    assert found.predictions == every.numel() == 6 * 29
    assert found.kl == pytest.approx(float(every.mean()), rel=1e-4)
    parts = every.split([7, 7, 7, 8], 1)
    quarters = zip(found.by_quarter, found.by_quarter_intervals, parts, strict=True)
    for ours, interval, part in quarters:
        assert ours == pytest.approx(float(part.mean()), rel=1e-4)
        assert interval == pytest.approx(bootstrap.spread(part.mean(1).tolist()), rel=1e-4)
    assert found.interval is not None and found.interval[0] <= found.kl <= found.interval[1]
    assert found.top1_interval[0] <= found.top1 <= found.top1_interval[1]
    few = agreement.measure((dense, pruned), tiny.tokenizer(), "builtin", Protocol(length=4, windows=2))
    assert few.interval is None and few.by_quarter == []  # three predictions have no quarters
    overlapping = Protocol(length=30, windows=6, stride=5)
    drawn = agreement.measure((dense, pruned), tiny.tokenizer(), "builtin", overlapping)
    assert drawn.interval is drawn.top1_interval is None and drawn.by_quarter_intervals == [None] * 4
    assert min(every.mean(1)) <= found.interval[0] and found.interval[1] <= max(every.mean(1))


@torch.no_grad()
def test_a_cut_vocabulary_is_compared_over_the_tokens_that_stayed(tmp_path: Path) -> None:
    dense = test_vocabulary.save(tiny.config("llama"), tmp_path / "dense")
    cut = test_vocabulary.asked()
    prune(dense, {**TEXT, **cut}, out=tmp_path / "cut")
    prune(dense, {**TEXT, "steps": [cut, {"method": "magnitude", "sparsity": 0.6}]}, out=tmp_path / "both")
    names = {"baseline": str(dense), "model": str(tmp_path / "cut"), "model-2": str(tmp_path / "both")}
    protocol = Protocol(length=8, windows=60)
    found = evaluation.evaluate(names, ["builtin"], protocol)
    (alone,), (lost,) = (found[role]["agreement"] for role in ("model", "model-2"))
    assert alone["kl"] == pytest.approx(0, abs=1e-6) and alone["top1"] == 1.0
    assert 0 < alone["windows"] == lost["windows"] < 1
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (dense, tmp_path / "both"))
    new = {
        old: ours.get_vocab()[token] for token, old in theirs.get_vocab().items() if token in ours.get_vocab()
    }
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (dense, tmp_path / "both")]
    each = []
    for window in windows_of(theirs, "builtin", settled(protocol, theirs, models[0].config)):
        ids = window.ids.tolist()
        if all(token in new for token in ids):
            p = models[0](window.ids[None]).logits[0, :-1][:, list(new)].log_softmax(-1)
            q = models[1](torch.tensor([[new[token] for token in ids]])).logits[0, :-1]
            q = q[:, list(new.values())].log_softmax(-1)
            each.append(kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())
    assert lost["windows"] == pytest.approx(len(each) / 60)
    assert lost["kl"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
    (row,) = (said for what, said in evaluation.rows(found["model"]) if "agreement" in what)
    assert "over the tokens that stayed, on the" in row
    assert not {"kl", "top1"} & gate.figures(found["model"]).keys()  # windows without others are easy ones


def test_a_divergence_that_grows_along_the_window_is_told() -> None:
    both = {"dataset": "t", "kl": 0.1, "top1": 0.9, "interval": None, "predictions": 40}
    both["by_quarter"] = [0.1, 0.1, 0.1, 0.16]
    (row,) = evaluation.rows({"perplexity": [], "agreement": [both]})
    assert "in a window it grows from 0.1000 (first quarter) to 0.1600 (last)" in row[1]
    (row,) = evaluation.rows({"perplexity": [], "agreement": [both | {"by_quarter": [0.1] * 4}]})
    assert "grows" not in row[1]
    (row,) = evaluation.rows({"perplexity": [], "agreement": [both | {"by_quarter": []}]})
    assert "grows" not in row[1]


def test_models_whose_blocks_do_not_correspond_have_no_drift(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    for name, block in (("first", 0), ("last", 2)):
        prune(
            checkpoints("llama"),
            {"pattern": {"name": "blocks", "remove": [block], "keep_ends": False}},
            out=tmp_path / name,
        )
    whole, first, last = (
        AutoModelForCausalLM.from_pretrained(folder).eval()
        for folder in (checkpoints("llama"), tmp_path / "first", tmp_path / "last")
    )
    torch.manual_seed(0)
    sizes = whole.config.to_dict() | {"hidden_size": 48}
    other = AutoModelForCausalLM.from_config(type(whole.config)(**sizes))
    where = tiny.tokenizer(), "builtin", Protocol(length=30, windows=1)
    between = agreement.drift(first, last, *where)
    assert between is not None and between["blocks"] == [1]
    backwards = agreement.drift(first, whole, *where)
    assert backwards is not None and backwards["blocks"] == [1, 2]
    assert agreement.drift(whole, other.eval(), *where) is None


@torch.no_grad()
@pytest.mark.parametrize(
    "asked",
    [
        {"method": "magnitude", "sparsity": 0.8},
        {"pattern": {"name": "blocks", "remove": [1]}},
        {"method": "magnitude", "sparsity": 0.5, "pattern": {"name": "units", "multiple": 8}},
    ],
)
def test_drift_is_the_cosine_behind_the_same_block(
    asked: dict[str, Any], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), asked, out=tmp_path / "out")
    folders = checkpoints("llama"), tmp_path / "out"
    dense, pruned = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    protocol = Protocol(length=30, windows=1)
    found = agreement.drift(dense, pruned, tiny.tokenizer(), "builtin", protocol)
    kept = [0, 2] if "remove" in str(asked) else [0, 1, 2]
    assert found["blocks"] == kept
    window = next(
        iter(windows_of(tiny.tokenizer(), "builtin", settled(protocol, tiny.tokenizer(), dense.config)))
    )
    before, after = (
        model(window.ids[None], output_hidden_states=True).hidden_states for model in (dense, pruned)
    )
    for number, (block, cosine) in enumerate(zip(kept, found["cosine"], strict=True), 1):
        a, b = before[block + 1][0], after[number][0]
        expected = ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()
        assert cosine == pytest.approx(float(expected), abs=1e-5)
    assert found["cosine"][0] < 1 or "remove" in str(asked)
    alike = agreement.drift(dense, dense, tiny.tokenizer(), "builtin", protocol)["cosine"]
    assert alike == pytest.approx([1.0] * 3, abs=1e-6)
    assert found["intervals"] == [None] * len(kept)  # of one window
    more = agreement.drift(dense, pruned, tiny.tokenizer(), "builtin", Protocol(length=30, windows=6))
    for cosine, (low, high) in zip(more["cosine"], more["intervals"], strict=True):
        assert low <= cosine <= high


def test_drift_is_kept_and_drawn(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), {"method": "magnitude", "sparsity": 0.8}, out=tmp_path / "out")
    names = {"baseline": str(checkpoints("llama")), "model": str(tmp_path / "out")}
    for windows, bars in ((2, 0), (6, 3)):  # two windows have no interval
        keeping.keep(evaluation.evaluate(names, ["builtin"], Protocol(length=30, windows=windows)))
        (run,) = read_all([tmp_path / "out"])
        drawn = {plot.name: plot for plot in figures.of(run)}
        assert isinstance(drawn["drift"], Chart) and len(drawn["drift"].series[0].points) == 3
        assert len(drawn["drift"].series[0].ends) == bars
        assert len(drawn["quarters"].series[0].ends) == (4 if bars else 0)
        said = page.page([run])
        assert f"behind each block beside the dense model&#x27;s, on builtin, {windows} windows of 30" in said
        assert "along the windows of builtin" in said
        assert ("95 % by drawing windows" in said) == bool(bars)


def test_every_figure_has_an_interval(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), {"method": "magnitude", "sparsity": 0.5}, out=tmp_path / "out")
    names = {"baseline": str(checkpoints("llama")), "model": str(tmp_path / "out")}
    found = evaluation.evaluate(names, ["builtin"], Protocol(length=30, windows=8))["model"]
    ((text,), (compared,)) = found["perplexity"], found["comparison"]["perplexity"]
    for value, interval in (
        (text["perplexity"], text["interval"]),
        (text["bits_per_byte"], text["bits_per_byte_interval"]),
        (compared["ratio"], compared["ratio_interval"]),
        (compared["bits_per_byte"], compared["interval"]),
    ):
        assert interval[0] < value < interval[1]
