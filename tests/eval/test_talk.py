"""Answers are those of transformers, instructions are checked, and alike models are not told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llmprune_eval import instructions, talk, tasks
from llmprune_eval.talk import Answer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from llmprune import prune
from llmprune.errors import RequestError
from tests import tiny
from tests.program import run
from tests.vocabulary import tokenizers_here

pytestmark = pytest.mark.usefixtures("check_in_process")

KEPT: list[tuple[dict[str, Any], str, str]] = [
    ({"lines": 2}, "a\n\nb", "a"),
    ({"sentences": 2}, "One. Two!", "One, two."),
    ({"bullets": 2}, "- a\n* b", "- a\nb"),
    ({"numbered": 2}, "1. a\n2) b", "1. a\n3. b"),
    ({"at_most": 2}, "two words", "three words here"),
    ({"at_least": 2}, "two words", "one"),
    ({"contains": ["Sea", "salt"]}, "salt of the sea", "the sea"),
    ({"excludes": ["fur"]}, "a cat", "its Fur"),
    ({"begins": "Because"}, "because so", "so"),
    ({"ends": "the end"}, "This is the end.", "the end of it"),
    ({"lower": True}, "all low", "Not low"),
    ({"upper": True}, "ALL UP", "Not"),
    ({"quoted": True}, '"honey"', 'honey"'),
    ({"commas": 2}, "a, b, c", "a, b"),
    ({"json": ["name"]}, '```json\n{"name": "Ada"}\n```', '{"age": 3}'),
    ({"json": []}, '["red"]', "red"),
]


@pytest.mark.parametrize(("checks", "good", "bad"), KEPT)
def test_instructions_are_kept_or_not(checks: dict[str, Any], good: str, bad: str) -> None:
    assert instructions.kept(good, checks) == 1.0
    assert instructions.kept(bad, checks) == 0.0
    assert instructions.kept("  ", checks) == 0.0  # saying nothing keeps nothing


def test_every_prompt_has_checks_that_are_known_and_all_are_tried() -> None:
    known = {name for one in talk.prompts(talk.PROMPTS) for name in one["checks"]}
    assert len(talk.prompts(100)) == talk.PROMPTS == len({one["prompt"] for one in talk.prompts(100)})
    assert known == instructions.CHECKS.keys() == {name for checks, _, _ in KEPT for name in checks}


@pytest.mark.parametrize(("ids", "share"), [([], 0), ([1, 2, 3], 0), ([1] * 8, 0.8), (list(range(9)), 0)])
def test_repeated_runs_are_counted(ids: list[int], share: float) -> None:
    assert Answer(ids, "", True, 1.0).repeated == pytest.approx(share)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A model that chats."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=448, max_position_embeddings=1024, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    tokenizers_here.tokenizer("byte level").save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@torch.no_grad()
def test_answers_are_those_of_transformers_one_by_one(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "BUDGET", 12)
    model = AutoModelForCausalLM.from_pretrained(dense).eval()
    tokenizer = AutoTokenizer.from_pretrained(dense)
    found = talk.measure(model, tokenizer, 20)
    ends = talk._ends(model, tokenizer)
    for one, answer in zip(talk.prompts(20), found["answers"], strict=True):
        message = [{"role": "user", "content": one["prompt"]}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        written = []
        for _ in range(12):
            written.append(int(model(ids).logits[0, -1].argmax()))
            if written[-1] in ends:
                break
            ids = torch.cat([ids, torch.tensor([[written[-1]]])], 1)
        assert answer["stopped"] == (written[-1] in ends)
        assert answer["ids"] == [token for token in written if token not in ends]
    assert "20 prompts" in found["protocol"] and "at most 12 tokens" in found["protocol"]


def test_a_model_beside_itself_differs_in_nothing(dense: Path, tmp_path: Path) -> None:
    words: list[object] = ["eval", dense, "--baseline", dense, "--suite", "talk", "--limit", 4, "--json"]
    asked = [
        str(word) for word in [*words, "--fail-if", "talk.agreement < 1", "--fail-if", "talk.longer > 1"]
    ]
    done = run(*asked)
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)["model"]
    compared = model["comparison"]["talk"]
    assert compared["agreement"]["value"] == 1.0 and compared["longer"] == 1.0
    for name in talk.FIGURES:
        assert compared[name]["difference"] == 0 and not compared[name]["flagged"]
        assert 0 <= model["talk"][name] <= 1


def test_a_model_that_lost_its_weights_is_flagged(dense: Path, tmp_path: Path) -> None:
    prune(dense, {"method": "magnitude", "sparsity": 0.99}, out=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(dense)
    found = [
        talk.measure(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer, 8)
        for folder in (dense, tmp_path / "out")
    ]
    compared = talk.compare(*found)
    assert compared["agreement"]["value"] < 0.5
    low, high = compared["repeated"]["interval"]
    assert compared["repeated"]["flagged"] == (low > 0 or high < 0)


def test_a_model_that_does_not_chat_is_refused(checkpoints: tiny.Checkpoints) -> None:
    with pytest.raises(RequestError, match="suite: it was asked to chat, and m has no chat template"):
        tasks.require_template(tiny.tokenizer(), "m", "suite")
    folder = str(checkpoints("llama"))
    done = run("eval", folder, "--suite", "talk")
    assert done.returncode == 2 and f"{folder} has no chat template" in done.stderr


def test_a_file_chats_through_the_template_that_it_holds(dense: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp==2026.10.11549: pip install it")
    file = tmp_path / "dense.gguf"
    words: list[object] = ["export", dense, "--to", "gguf", "--type", "f32", "--out", file]
    assert run(*words).returncode == 0
    words = ["eval", file, "--baseline", dense, "--suite", "talk", "--limit", 2, "--json"]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["comparison"]["talk"]["agreement"]["value"] > 0.5
