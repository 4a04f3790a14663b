"""What a comparison says of two models, and how sure it is."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from llmprune_eval import agreement, comparison, logits
from llmprune_eval.windows import Protocol

from llmprune.text import sources
from llmprune.text.tokenizing import tokenize
from tests import tiny


def test_the_interval_is_that_of_paired_questions():
    generator = np.random.default_rng(1)
    hard = generator.random(400) < 0.5
    dense = {str(i): float(not hard[i]) for i in range(400)}
    pruned = {str(i): float(not hard[i] and i % 10 != 0) for i in range(400)}
    found = comparison.paired(dense, pruned)
    lost = np.array([pruned[str(i)] - dense[str(i)] for i in range(400)])
    assert found["difference"] == pytest.approx(lost.mean())
    low, high = found["interval"]
    normal = 1.96 * lost.std() / 20
    assert low == pytest.approx(lost.mean() - normal, abs=0.006)
    assert high == pytest.approx(lost.mean() + normal, abs=0.006)
    assert found == comparison.paired(dense, pruned)  # the same on every run


def test_models_that_answer_alike_differ_by_nothing_for_sure():
    scores = {str(i): float(i % 2) for i in range(10)}
    assert comparison.paired(scores, scores)["interval"] == [0, 0]


def test_the_mean_over_tasks_weighs_them_alike():
    generator = np.random.default_rng(2)
    pairs = []
    for count in (300, 30):
        dense = {str(i): float(generator.random() < 0.6) for i in range(count)}
        pairs.append((dense, {q: score * float(generator.random() < 0.8) for q, score in dense.items()}))
    found = comparison.averaged(pairs)
    lost = [np.array([pruned[q] - dense[q] for q in dense]) for dense, pruned in pairs]
    assert found["questions"] == 330
    assert found["difference"] == pytest.approx((lost[0].mean() + lost[1].mean()) / 2)
    error = sum(one.var() / len(one) for one in lost) ** 0.5 / 2
    assert np.subtract(found["interval"], found["difference"]) == pytest.approx(
        [-1.96 * error, 1.96 * error], rel=0.15
    )


def test_a_comparison_of_several_tasks_has_their_mean():
    def task(scores: str) -> dict:
        examples = {str(i): float(one) for i, one in enumerate(scores)}
        return {"metric": "acc", "acc": sum(examples.values()) / len(examples), "examples": examples}

    dense, pruned = {"a": task("1111"), "b": task("10")}, {"a": task("1100"), "b": task("10")}
    found = comparison.of({"tasks": dense}, {"tasks": pruned})
    assert found["mean"]["difference"] == -0.25
    assert (found["mean"]["dense"], found["mean"]["pruned"]) == (0.75, 0.5)
    assert dict(comparison.rows(found))["mean"].startswith("mean of 2 tasks 0.7500 -> 0.5000, 66.7% retained")
    assert "mean" not in comparison.of({"tasks": {"a": dense["a"]}}, {"tasks": {"a": pruned["a"]}})


def test_of_a_figure_that_should_be_low_nothing_is_retained():
    dense = {"metric": "word_perplexity", "word_perplexity": 4.0, "higher_is_better": False, "examples": {}}
    found = comparison.of({"tasks": {"a": dense}}, {"tasks": {"a": dense | {"word_perplexity": 6.0}}})
    assert dict(comparison.rows(found))["a"] == "word_perplexity 4.0000 -> 6.0000"


def test_other_tokenizers_are_compared_by_bits_per_byte():
    text = {"dataset": "t", "perplexity": 10.0, "bits_per_byte": 1.0, "tokenizer": "a"}
    other = text | {"tokenizer": "b", "perplexity": 5.0, "bits_per_byte": 1.5}
    found = comparison.of({"perplexity": [text]}, {"perplexity": [other]})
    assert found["perplexity"] == [
        {
            **{"dataset": "t", "measure": "bits_per_byte", "ratio": 1.5, "bits_per_byte": 1.5},
            **{"ratio_interval": None, "interval": None, "comparable": False},
        }
    ]


def read(dataset: str, losses: list[float], **more: Any) -> dict[str, Any]:
    """A text of 100 bytes a window, as `perplexity.measure` tells of it."""
    bits = sum(losses) / math.log(2) / (100 * len(losses))
    told = {"dataset": dataset, "bits_per_byte": bits, "perplexity": math.exp(sum(losses) / 1000)}
    return told | {"losses": losses, "length": 64, "stride": 64, **more}


def test_bits_per_byte_have_an_interval_and_typing_errors_a_factor():
    draw = np.random.default_rng(0)
    clean, typed = (list(draw.uniform(low, low + 10, 40)) for low in (50, 70))
    dense = [read("t", clean), read("typos:t", typed)]
    pruned = [read("t", [1.1 * x for x in clean]), read("typos:t", [1.32 * x for x in typed])]
    first, second = comparison.of({"perplexity": dense}, {"perplexity": pruned})["perplexity"]
    assert first["bits_per_byte"] == pytest.approx(1.1)
    assert first["interval"] == pytest.approx([1.1, 1.1])  # the same factor in every window
    low, high = first["ratio_interval"]  # a factor of the logarithm is none of the perplexity
    assert low < first["ratio"] < high and math.log(high / low) < 0.2 * math.log(first["ratio"])
    assert "typos" not in first
    assert second["typos"]["value"] == pytest.approx(1.2)
    assert second["typos"]["interval"] == pytest.approx([1.2, 1.2])
    noisy = [read("t", [x + e for x, e in zip(clean, draw.normal(0, 5, 40), strict=True)])]
    (found,) = comparison.of({"perplexity": dense[:1]}, {"perplexity": noisy})["perplexity"]
    low, high = found["interval"]
    assert low < found["bits_per_byte"] < high and 0.01 < high - low < 0.1
    for few in ({"losses": clean[:5]}, {"stride": 16}):  # too few windows, or windows that share their text
        (found,) = comparison.of(*({"perplexity": [read("t", clean) | few]} for _ in range(2)))["perplexity"]
        assert found["interval"] is None


def test_agreement_is_the_divergence_of_all_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(logits, "ROWS", 5)
    file = tmp_path / "text.txt"
    file.write_text(" ".join(sources.for_evaluation("builtin").text("evaluation").split()[:200]))
    tokenizer, dense, pruned = tiny.tokenizer(), tiny.model("llama"), tiny.model("llama")
    with torch.no_grad():
        pruned.lm_head.weight.mul_(1.5).add_(0.02 * torch.randn_like(pruned.lm_head.weight))
    found = agreement.measure((dense, pruned), tokenizer, str(file), Protocol(16, 3))
    ids = tokenize(file.read_text(), tokenizer)[:48].reshape(3, 16)
    with torch.no_grad():
        p, q = (m(ids).logits[:, :-1].log_softmax(-1) for m in (dense, pruned))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / 45
    assert found.predictions == 45
    assert found.kl == pytest.approx(float(expected), rel=1e-4)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    itself = agreement.measure((dense, dense), tokenizer, str(file), Protocol(16, 3))
    assert (itself.kl, itself.top1) == (0, 1)


def test_ids_that_only_one_of_the_models_has_are_left_out_of_the_agreement(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join("abcdefgh" * 8))
    dense, widened = tiny.model("llama"), tiny.model("llama")
    widened.resize_token_embeddings(tiny.VOCABULARY + 32)
    for pair in ((dense, widened), (widened, dense)):
        found = agreement.measure(pair, tiny.tokenizer(), str(file), Protocol(16, 2))
        assert (found.kl, found.top1) == (pytest.approx(0, abs=1e-5), 1)
