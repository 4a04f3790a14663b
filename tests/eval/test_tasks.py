"""Scores of tasks are lm-eval's own, to the last digit, and it reads what we write with its own command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers.tokenization_utils_base as tokenizers

from llmprune import load, prune
from llmprune.errors import JobError, RequestError
from tests.conftest import SHARED
from tests.program import run

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'llmprune[eval]'")
from llmprune_eval import keeping, scores, tasks
from llmprune_eval.tasks import Ask

BIN = Path(sys.executable).parent
MODEL, DATA = SHARED / "models" / "stories260K", SHARED / "data"
needs_shared = pytest.mark.skipif(
    not (MODEL.is_dir() and DATA.is_dir()), reason="needs ../shared/models and ../shared/data"
)
LIMIT = 8
LAYOUTS = {
    "masked": {"method": "magnitude", "pattern": "2:4"},
    "per_layer": {
        "method": "magnitude",
        "sparsity": 0.3,
        "pattern": {"name": "units", "multiple": 4, "parts": "ffn"},
        "allocation": {"name": "profile", "blocks": [0.2, 0.3, 0.4, 0.2, 0.4]},
        "layout": "per_layer",
    },
}
LAYOUTS["padded"] = LAYOUTS["per_layer"] | {"layout": "padded"}
LAYOUTS["uniform"] = LAYOUTS["per_layer"] | {"allocation": "uniform", "layout": "uniform"}


def command(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [BIN / words[0], *map(str, words[1:])],
        capture_output=True,
        text=True,
        cwd=DATA,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    return done


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_our_scores_are_those_of_lm_evals_own_command(layout: str, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    prune(MODEL, LAYOUTS[layout], out=out)
    trust = ",trust_remote_code=True" if layout == "per_layer" else ""
    arguments = f"pretrained={out},dtype=float32{trust}"
    asked = ["--tasks", "arc_easy,piqa", "--limit", LIMIT, "--batch_size", 1, "--output_path", tmp_path / "r"]
    command("lm_eval", "--model", "hf", "--model_args", arguments, "--device", "cpu", *asked)
    theirs = json.loads(next((tmp_path / "r").rglob("results_*.json")).read_text())["results"]
    words = ["eval", out, "--tasks", "arc_easy,piqa", "--limit", LIMIT, "--json", "--trust-remote-code"]
    ours = json.loads(command("llmprune", *words).stdout)["model"]["tasks"]
    for task in ("arc_easy", "piqa"):
        assert ours[task]["metric"] == "acc_norm"
        assert len(ours[task]["examples"]) == LIMIT
        for metric in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"):
            assert ours[task][metric] == theirs[task][f"{metric},none"]


@needs_shared
def test_figures_beside_the_baseline_are_compared_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    prune(MODEL, LAYOUTS["masked"], out=out)
    words = ["eval", out, "--tasks", "arc_easy", "--limit", LIMIT, "--seed", 1]
    words += ["--data", DATA, "--baseline", MODEL]
    words += ["--perplexity", "builtin", "--length", 64, "--windows", 2, "--save", "--json"]
    found = json.loads(run(*words).stdout)
    row = found["model"]["comparison"]["tasks"]["arc_easy"]
    assert row["questions"] == LIMIT
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert row["dense"] == found["baseline"]["tasks"]["arc_easy"]["acc_norm"]
    assert 0 <= found["model"]["agreement"][0]["top1"] <= 1
    kept = json.loads((out / "llmprune_report.json").read_text())["evaluation"]
    (text,) = found["model"]["perplexity"]
    assert len(text.pop("losses")) == text["windows"]
    assert kept["model"]["perplexity"] == [text]
    assert "examples" not in kept["model"]["tasks"]["arc_easy"]
    card = (out / "README.md").read_text()
    assert card.count("## Quality") == 1
    assert f"acc_norm, 0-shot, lm-eval, {LIMIT} of 2376 questions" in card
    from huggingface_hub import ModelCard

    results = ModelCard.load(out / "README.md").data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == {
        "perplexity": found["model"]["perplexity"][0]["perplexity"],
        "acc_norm": found["model"]["tasks"]["arc_easy"]["acc_norm"],
    }
    keeping.keep(found, kept["asked"])
    assert (out / "README.md").read_text() == card  # said once


@needs_shared
def test_what_lm_eval_prints_is_kept_from_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load(str(MODEL), kernels="none")
    tasks.score(model, tokenizer, Ask(("arc_easy",), limit=2, batch_size="auto", data=DATA))
    assert capsys.readouterr().out == ""


@needs_shared
@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (Ask(("rte",), num_fewshot=5, limit=2, data=DATA), RequestError, "score rte as asked .Sample larger"),
        (Ask(("ifeval",), limit=2, data=DATA), RequestError, "without a package .*langdetect"),
        (Ask(("gsm8k",), limit=2, data=DATA), JobError, "the data of gsm8k is out of reach"),
    ],
    ids=["few examples", "package", "data"],
)
def test_why_lm_eval_cannot_score_is_told_apart(
    asked: Ask, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(error, match=said):
        tasks.score(*load(str(MODEL), kernels="none"), asked)


@needs_shared
def test_storage_that_fails_is_data_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Task error: File reconstruction error")  # as the Hub's client words it

    monkeypatch.setattr("datasets.load.dataset_module_factory", fail)
    with pytest.raises(JobError, match=r"the data of arc_easy is out of reach .*reconstruction"):
        tasks.score(*load(str(MODEL), kernels="none"), Ask(("arc_easy",), limit=2, data=DATA))


@needs_shared
def test_a_local_copy_of_half_a_data_set_is_data_out_of_reach(tmp_path: Path) -> None:
    half = Path("allenai/ai2_arc/ARC-Challenge")
    shutil.copytree(DATA / half, tmp_path / half)
    with pytest.raises(JobError, match=r"the data of arc_easy is out of reach .*ARC-Easy"):
        tasks.score(*load(str(MODEL), kernels="none"), Ask(("arc_easy",), limit=2, data=tmp_path))


@needs_shared
def test_a_tokenizer_of_another_model_is_refused() -> None:
    model, _ = load(str(MODEL), kernels="none")
    _, other = load(str(SHARED / "models" / "stories15M"), kernels="none")
    with pytest.raises(RequestError, match="tokenizer: it gives the id 31999, and the model knows 512"):
        tasks.score(model, other, Ask(("arc_easy",), limit=2, data=DATA))


@needs_shared
def test_git_is_not_asked(capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load(str(MODEL), kernels="none")
    tasks.score(model, tokenizer, Ask(("arc_easy",), limit=1, data=DATA))  # DATA is no repository
    assert "fatal" not in capfd.readouterr().err


def test_questions_without_a_score_of_their_own_are_left_out() -> None:
    samples = [{"doc_id": n, "word_perplexity": (-3.5, 2), "acc": np.float64(n)} for n in range(2)]
    found = {"samples": {"wikitext": samples}, "higher_is_better": {"wikitext": {"word_perplexity": False}}}
    told = scores.of("wikitext", {"word_perplexity,none": 5.75}, found)
    assert (told["word_perplexity"], told["higher_is_better"], told["examples"]) == (5.75, False, {})
    assert scores.of("wikitext", {"acc,none": 0.5}, found)["examples"] == {"0": 0.0, "1": 1.0}


def test_suites_are_lists_of_known_tasks_whose_settings_give_way() -> None:
    none = {"num_fewshot": None, "limit": None, "batch_size": "1", "data": None}
    assert {name: tasks.ask(name, **none).limit for name in tasks.suites()} == {
        "mmlu": None,
        "paper": None,
        "quick": 100,
        "sharp": 1000,
    }
    asked = tasks.ask("quick,arc_easy,boolq", **none | {"limit": 7, "num_fewshot": 2})
    assert asked.tasks == ("arc_easy", "piqa", "boolq")
    assert (asked.limit, asked.num_fewshot) == (7, 2)


def test_a_seed_draws_the_same_questions_for_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = SimpleNamespace(eval_docs=range(5)), SimpleNamespace(eval_docs=range(1000))
    manager = SimpleNamespace(load=lambda _: {"tasks": {"few": few, "many": many}})
    monkeypatch.setattr(tasks, "_manager", lambda: manager)

    def drawn(limit: int, seed: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = tasks._questions(Ask(("few", "group"), limit=limit, seed=seed))[
            "samples"
        ]
        return found

    first = drawn(100, 0)
    assert first["few"] == [0, 1, 2, 3, 4]
    assert first["many"] == sorted(set(first["many"])) != list(range(100))
    assert len(first["many"]) == 100
    assert drawn(100, 0) == first != drawn(100, 1)
    assert set(first["many"]) < set(drawn(200, 0)["many"])
    assert tasks._questions(Ask(("few",), limit=100)) == {"limit": 100}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": "arc_easi"}, "tasks: lm-eval has no task 'arc_easi'; did you mean arc_easy"),
        ({"names": ""}, "tasks: none were named"),
        ({"batch_size": "0"}, "batch_size: '0' is neither auto nor a number"),
        ({"batch_size": "²"}, "batch_size: '²' is neither auto nor a number"),
        ({"data": Path("nowhere")}, "data: nowhere is no folder"),
        ({"names": "quick,openbookqa"}, "limit: it differs: 100 for quick, none for openbookqa; ask for"),
        ({"names": "mmlu,paper"}, "num_fewshot: it differs: 5 for mmlu, none for paper; ask for"),
        ({"seed": 3}, "seed: 3 was given, and all questions are asked"),
    ],
)
def test_what_lm_eval_cannot_score_is_refused(change: dict[str, Any], words: str) -> None:
    usual = {"names": "piqa", "num_fewshot": None, "limit": None, "batch_size": "1", "data": None}
    with pytest.raises(RequestError) as refusal:
        tasks.ask(**usual | change)
    assert str(refusal.value).startswith(words)


@needs_shared
def test_a_chat_goes_through_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(str(MODEL), kernels="none")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} OVER {% endfor %}"
    asked, read = Ask(("arc_easy",), num_fewshot=1, limit=2, data=DATA, chat=True), []
    encode = tokenizers.PreTrainedTokenizerBase.encode

    def noted(self: Any, text: Any, *rest: Any, **named: Any) -> Any:
        read.append(text)
        return encode(self, text, *rest, **named)

    monkeypatch.setattr(tokenizers.PreTrainedTokenizerBase, "encode", noted)
    found = tasks.score(model, tokenizer, asked)["tasks"]["arc_easy"]
    assert found["chat"] == tasks.template(tokenizer)
    asked_of = [text for text in read if "Question" in str(text)]
    assert asked_of and all(str(text).count("OVER") == 3 for text in asked_of)  # example, answer, question
