"""The dense model answers prompts through its chat template, and conversations are read through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmprune.errors import RequestError
from llmprune.run.tokens import uses
from llmprune.text import sources
from llmprune.text.calibration import calibration_of
from llmprune.text.sources.answers import AT_ONCE, Answers
from llmprune.text.sources.base import Access, Amount
from llmprune.text.sources.table import Table
from llmprune.text.tokenizing import tokenize
from tests import tiny
from tests.text.sources.lent import access

TEMPLATE = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
TALKS = [[{"role": "user", "content": f"e{n} a b"}, {"role": "assistant", "content": "no"}] for n in "abc"]
GREEDY = 1e-6  # a temperature at which the likeliest token is drawn


def talking() -> PreTrainedTokenizerFast:
    made = tiny.tokenizer()
    made.chat_template = TEMPLATE
    return made


def lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    rows = [{"prompt": " ".join("abcdefgh"[: 1 + n % 7])} for n in range(2 * AT_ONCE)]
    return lines(tmp_path / "asked.jsonl", rows)


@pytest.fixture
def model(checkpoints: tiny.Checkpoints) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    return found


def lent(model: PreTrainedModel, opened: list[int], **identity: str) -> Access:
    def whole() -> PreTrainedModel:
        opened.append(1)
        return model

    return access(tokenizer=talking, whole_model=whole, cache_key=lambda: identity or None)


@torch.no_grad()
def by_hand(model: PreTrainedModel, prompt: str, most: int) -> Tensor:
    """A prompt and its likeliest answer, token after token, without padding or cache."""
    ids = tokenize(f"<s> user {prompt} <s> assistant ", talking())
    for _ in range(most):
        ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
        if int(ids[-1]) == model.generation_config.eos_token_id:
            break
    return ids


@pytest.mark.parametrize("ends", [False, True])
def test_answers_are_the_models_own(ends: bool, model: PreTrainedModel, prompts: str) -> None:
    rows = [json.loads(line)["prompt"] for line in Path(prompts).read_text().splitlines()]
    if ends:  # with a token that the model likes to say
        model.generation_config.eos_token_id = int(by_hand(model, rows[0], 3)[-1])
    expected = torch.cat([by_hand(model, row, 5) for row in rows])
    samples = len(expected) // 16
    text = Answers(f"{prompts}:answers", temperature=GREEDY, most=5)
    found = text.windows(Amount(samples, 16, 0), lent(model, []))
    assert torch.equal(found.tokens.flatten(), expected[: 16 * samples])


def test_batches_that_are_there_are_not_answered_again(model: PreTrainedModel, prompts: str) -> None:
    opened: list[int] = []
    text = sources.for_calibration(f"{prompts}:answers", {"most": 4})
    first = text.windows(Amount(4, 16, 1), lent(model, opened, weights="these")).tokens
    count = len(opened)
    assert torch.equal(text.windows(Amount(4, 16, 1), lent(model, opened, weights="these")).tokens, first)
    assert len(opened) == count
    assert not torch.equal(text.windows(Amount(4, 16, 2), lent(model, opened, weights="these")).tokens, first)
    assert len(opened) > count


def test_their_windows_begin_as_the_tokenizer_begins_a_text(model: PreTrainedModel, prompts: str) -> None:
    asked = calibration_of({"dataset": f"{prompts}:answers", "samples": 3, "bos": True})
    found = asked.windows(17, lent(model, [])).tokens
    assert found[:, 0].tolist() == [talking().bos_token_id] * 3
    plain = Answers(f"{prompts}:answers").windows(Amount(3, 16, 0), lent(model, [])).tokens
    assert torch.equal(found[:, 1:], plain)


def test_they_are_a_part_of_a_mix(model: PreTrainedModel, prompts: str) -> None:
    mix = sources.for_calibration(f"builtin:3,{prompts}:answers:2")
    assert mix.needs_whole_model and mix.own_samples == 5
    found = mix.windows(Amount(5, 16, 0), lent(model, []))
    assert [len(part.tokens) for part in found.parts] == [3, 2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a"}], "give more prompts"),
        ([{"messages": TALKS[0]}], "row 1 .* end with assistant"),
        ([{"body": "a"}], "no text column 'prompt'"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    rows: list[dict[str, Any]], said: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    text = Answers(f"{lines(tmp_path / 'asked.jsonl', rows)}:answers", most=2)
    with pytest.raises(RequestError, match=said):
        text.windows(Amount(64, 16, 0), lent(model, []))


def test_only_tables_hold_prompts(model: PreTrainedModel) -> None:
    with pytest.raises(RequestError, match="no table of prompts"):
        Answers("builtin:answers").windows(Amount(1, 16, 0), lent(model, []))


def test_conversations_go_through_the_chat_template(tmp_path: Path) -> None:
    file = lines(tmp_path / "talks.jsonl", [{"messages": talk} for talk in TALKS])
    expected = "\n\n".join(f"<s> user e{n} a b <s> assistant no " for n in "abc")
    assert Table(file).text("calibration", tokenizer=talking()) == expected
    ids = tokenize(expected, talking())
    found = Table(file).windows(Amount(1, len(ids), 0), access(tokenizer=talking)).tokens
    assert torch.equal(found[0], ids)
    assert torch.equal(uses(Table(file), talking(), tiny.VOCABULARY), ids.bincount(minlength=tiny.VOCABULARY))


def test_conversations_without_a_template_or_as_evaluation_are_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "talks.jsonl", [{"messages": talk} for talk in TALKS])
    with pytest.raises(RequestError, match="has none; give a text"):
        Table(file).windows(Amount(1, 8, 0), access(tokenizer=tiny.tokenizer))
    with pytest.raises(RequestError, match="serve calibration alone"):
        Table(file).text("evaluation")
    with pytest.raises(RequestError, match="no text column 'body'"):
        Table(file, "body").text("calibration", tokenizer=talking())
    refusing = talking()
    refusing.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RequestError, match=r"messages of user and assistant .*must alternate"):
        Table(file).text("calibration", tokenizer=refusing)
