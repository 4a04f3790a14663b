"""Our perplexity against an independent transcription."""

import math

import pytest
import torch
from llmprune_eval import logits, perplexity, windows
from llmprune_eval.windows import Protocol
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmprune.errors import RequestError
from llmprune.text import sources
from llmprune.text.sources.base import Documents
from llmprune.text.tokenizing import tokenize
from tests import tiny


def transcription(model, ids: torch.Tensor, length: int) -> float:
    """exp of the mean over windows of transformers' own shifted loss."""
    windows = [ids[i : i + length][None] for i in range(0, len(ids) - length + 1, length)]
    with torch.no_grad():
        losses = [model(window, labels=window).loss.item() for window in windows]
    return math.exp(sum(losses) / len(losses))


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text(" ".join(sources.for_evaluation("builtin").text("evaluation").split()[:400]))
    return str(file)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("length", [16, 33, 64])
def test_perplexity_agrees_with_the_transcription(text, family, length, monkeypatch):
    monkeypatch.setattr(logits, "ROWS", 10)  # several pieces per window, the last one shorter
    model, tokenizer = tiny.model(family), tiny.tokenizer()
    found = perplexity.measure(model, tokenizer, text, Protocol(length))
    ids = tokenize(sources.for_evaluation(text).text("evaluation"), tokenizer)
    assert found.perplexity == pytest.approx(transcription(model, ids, length), rel=1e-5)
    assert found.windows == len(ids) // length
    assert found.predictions == found.windows * (length - 1)


def test_the_figure_carries_its_protocol(text):
    found = perplexity.measure(tiny.model("llama"), tiny.tokenizer(), text, Protocol(16, 2))
    assert (found.windows, found.length, found.stride, found.bos, found.dtype) == (
        2,
        16,
        16,
        False,
        "float32",
    )
    assert "2 windows of 16 tokens" in found.protocol


def test_a_tokenizer_with_the_same_tokens_in_another_order_is_another_one(text):
    tokenizer = tiny.tokenizer()
    vocabulary = tokenizer.get_vocab()
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    swapped = tiny.tokenizer()
    swapped.backend_tokenizer.model = models.WordPiece(
        vocabulary, unk_token="<unk>", continuing_subword_prefix=""
    )
    same, again, other = (
        perplexity.measure(tiny.model("llama"), one, text, Protocol(16, 1)).tokenizer
        for one in (tokenizer, tiny.tokenizer(), swapped)
    )
    assert same == again != other
    assert len(tokenizer) == len(swapped)


def test_a_tokenizer_of_another_model_is_refused(text):
    model = tiny.model("llama")
    model.resize_token_embeddings(40)
    with pytest.raises(RequestError, match=r"tokenizer: it gives the id \d+, and the model knows 40"):
        perplexity.measure(model, tiny.tokenizer(), text, Protocol(16, 4))


def test_windows_longer_than_the_context_or_the_text_are_refused(text, tmp_path):
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    with pytest.raises(RequestError, match="context is 64"):
        perplexity.measure(model, tokenizer, text, Protocol(65))
    short = tmp_path / "short.txt"
    short.write_text("one two")
    with pytest.raises(RequestError, match="fewer than one window"):
        perplexity.measure(model, tokenizer, str(short), Protocol(16))
    short.write_text(" \n" * 4000)
    with pytest.raises(RequestError, match="holds no text"):
        perplexity.measure(model, tokenizer, str(short), Protocol(16))


def test_the_builtin_text_is_not_the_one_that_calibrates():
    texts = [sources.for_evaluation("builtin").text(half) for half in ("calibration", "evaluation")]
    halves = [{part.strip() for part in text.split("\n\n")} - {""} for text in texts]
    assert not halves[0] & halves[1]
    assert min(map(len, texts)) > 100_000


@pytest.mark.parametrize(("stride", "bos"), [(5, False), (16, False), (7, True), (15, True)])
def test_overlapping_windows_count_every_prediction_once(text, stride, bos, monkeypatch):
    monkeypatch.setattr(logits, "ROWS", 6)
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    tokenizer.bos_token_id = tokenizer.bos_token_id or 1
    found = perplexity.measure(model, tokenizer, text, Protocol(16, 3, stride, bos))
    ids = tokenize(sources.for_evaluation(text).text("evaluation"), tokenizer)
    own = 16 - bos
    total, count, seen = 0.0, 0, 0 if bos else 1  # ids before `seen` have been predicted
    for start in (0, stride, 2 * stride):
        window = ids[start : start + own]
        if bos:
            window = torch.cat([torch.tensor([tokenizer.bos_token_id]), window])
        with torch.no_grad():
            logs = model(window[None]).logits[0].log_softmax(-1)
        new = own - max(0, seen - start)
        for place in range(len(window) - new, len(window)):
            if place:
                total -= float(logs[place - 1, window[place]])
                count += 1
        seen = start + own
    assert found.predictions == count
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.parametrize(("stride", "bos"), [(None, False), (1, False), (3, True)])
def test_bits_per_byte_counts_the_bytes_of_what_is_predicted(tmp_path, stride, bos):
    """With the space before each word, which decoders drop where it leads."""
    words = [letter * (1 + number % 5) for number, letter in enumerate("abcdéfghijklmnopqrstuvwxyz" * 2)]
    file = tmp_path / "words.txt"
    file.write_text(" ".join(words), encoding="utf-8")
    protocol = Protocol(8, 4, stride, bos)
    found = perplexity.measure(tiny.model("llama"), word_by_word(words), str(file), protocol)
    last = found.stride * 3 + 8 - bos
    predicted = range(0 if bos else 1, last) if stride else [n for n in range(last) if n % 8]
    size = sum(len(f" {words[n]}".encode()) for n in predicted)
    assert found.predictions == len(predicted)
    bits = found.predictions * math.log2(found.perplexity)
    assert found.bits_per_byte == pytest.approx(bits / size)


def word_by_word(words):
    """A tokenizer whose tokens are words with the space before them, as SentencePiece's are."""
    tokens = dict.fromkeys(["<unk>", "<s>", *(f"▁{word}" for word in words)])
    made = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize(("template", "bos"), [(None, False), ("<s> $A", True), ("$A </s>", False)])
@pytest.mark.parametrize("stride", [None, 5])
def test_windows_begin_as_the_tokenizer_begins_a_text(text, template, bos, stride):
    model, tokenizer = tiny.model("llama"), tiny.tokenizer(template)
    found = perplexity.measure(model, tokenizer, text, Protocol(16, 3, stride))
    asked = perplexity.measure(model, tiny.tokenizer(), text, Protocol(16, 3, stride, bos))
    assert found.to_dict() == asked.to_dict()
    assert found.bos is bos
    assert ("a BOS in front of each, whose prediction counts" in found.protocol) is bos
    assert ("no BOS added" in found.protocol) is not bos


def test_a_tokenizer_without_bos_is_refused_one(text):
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(RequestError, match=r"^bos: true was asked, .* no BOS token; give auto"):
        perplexity.measure(tiny.model("llama"), tokenizer, text, Protocol(16, 3, bos=True))


@pytest.mark.parametrize(("stride", "new"), [(14, 14), (5, 5)])
def test_of_a_beginning_of_several_tokens_no_prediction_counts(text, stride, new):
    tokenizer = tiny.tokenizer("<s> <pad> $A")
    found = list(perplexity.windows_of(tokenizer, text, Protocol(16, 3, stride)))
    assert [window.ids[:2].tolist() for window in found] == [[1, 0]] * 3
    ids = tokenize(sources.for_evaluation(text).text("evaluation"), tokenizer)
    assert [len(window.predicted) for window in found] == [14, new, new]
    assert torch.cat([window.predicted for window in found]).tolist() == ids[: 14 + 2 * new].tolist()


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_leaves_gaps_is_refused(text, stride):
    with pytest.raises(RequestError, match="stride"):
        perplexity.measure(tiny.model("llama"), tiny.tokenizer(), text, Protocol(16, 2, stride))


def test_no_more_is_read_than_the_windows_need(text, monkeypatch):
    words, read = sources.for_evaluation(text).text("evaluation"), []

    def parts(*_, **__):
        for number in range(100):
            read.append(number)
            yield words

    monkeypatch.setattr(Documents, "read", parts)
    monkeypatch.setattr(windows.tokenizing, "PIECE", 1000)
    monkeypatch.setattr(windows.tokenizing, "NEAR", 100)
    found = perplexity.measure(tiny.model("llama"), tiny.tokenizer(), text, Protocol(16, 3))
    assert found.windows == 3
    assert len(read) < 5
