"""A text that comes in parts has the tokens of the whole, and takes no more memory the longer it is."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmprune.text import sources, tokenizing
from tests import tiny
from tests.conftest import SHARED

# GPT-4's way to part a text before merging, and Llama 3's but for details.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that has learnt its merges from the reference manual, and from runs of space."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    if kind == "words":
        return tiny.tokenizer()
    if kind == "sentencepiece":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Metaspace()
    elif kind == "gpt4":
        split = pre_tokenizers.Split(Regex(CL100K), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        made.pre_tokenizer = byte_level
    text = sources.for_evaluation("builtin").text("calibration")[:20_000]
    runs = ["a  b   c    d\n\ne\n\n\nf\n \n g.\n\nh,\n" * 50]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], initial_alphabet=alphabet)
    made.train_from_iterator([text[i : i + 200] for i in range(0, len(text), 200)] + runs, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


WORDS = st.sampled_from(
    ["def", "of the", "x1", "2024", "don't", "…", "(a)", "word.", "日本語", "。", "-", "==="]
)
SPACES = st.sampled_from([" ", "  ", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\t", "\r\n", ""])


@pytest.mark.parametrize("kind", ["gpt2", "gpt4", "sentencepiece", "words"])
@settings(max_examples=60, deadline=None)
@given(said=st.lists(st.tuples(WORDS, SPACES), min_size=20, max_size=150), step=st.integers(1, 90))
def test_parts_have_the_tokens_of_the_whole(kind: str, said: list[tuple[str, str]], step: int) -> None:
    text = "".join(word + space for word, space in said)
    parts = [text[i : i + step] for i in range(0, len(text), step)]
    with mock.patch.multiple(tokenizing, PIECE=100, NEAR=30):
        found = list(tokenizing.tokens(parts, tokenizer(kind)))
    assert torch.equal(torch.cat(found), tokenizing.tokenize(text, tokenizer(kind)))


@pytest.mark.parametrize("kind", ["gpt2", "gpt4", "sentencepiece", "words"])
def test_a_long_text_is_cut(kind: str) -> None:
    text = sources.for_evaluation("builtin").text("evaluation")
    with mock.patch.multiple(tokenizing, PIECE=5_000):
        found = list(tokenizing.tokens([text], tokenizer(kind)))
    assert len(found) > len(text) / 10_000
    assert torch.equal(torch.cat(found), tokenizing.tokenize(text, tokenizer(kind)))


def test_a_text_without_a_place_to_cut_is_kept_whole() -> None:
    text = "日本語。" * 100
    with mock.patch.multiple(tokenizing, PIECE=50, NEAR=10):
        (found,) = tokenizing.tokens([text], tokenizer("gpt4"))
    assert torch.equal(found, tokenizing.tokenize(text, tokenizer("gpt4")))


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared/data")
@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared/models")
def test_wikitext_has_the_tokens_of_the_whole() -> None:
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(SHARED / "models" / "stories260K")
    file = SHARED / "data" / "Salesforce" / "wikitext" / "wikitext-2-raw-v1" / "test.parquet"
    text = sources.for_evaluation(str(file)).text("evaluation")
    found = list(tokenizing.tokens([text], real))
    assert len(found) > 3
    assert torch.equal(torch.cat(found), tokenizing.tokenize(text, real))


PEAK = """
import re, sys
from llmprune_eval import perplexity
from llmprune_eval.windows import Protocol
from tests import tiny

def peak():
    # ru_maxrss would begin with what the parent once took.
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024

model, tokenizer = tiny.model("llama"), tiny.tokenizer()
perplexity.loss_from = lambda model, window, first: float(len(window))  # a model's time, not its memory
perplexity.measure(model, tokenizer, sys.argv[1], Protocol(64))
before = peak()
found = perplexity.measure(model, tokenizer, sys.argv[2], Protocol(64))
print(found.predictions, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status")
@pytest.mark.parametrize("megabytes", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_the_memory_does_not_grow_with_the_text(megabytes: int, tmp_path: Path) -> None:
    line = "the rest of a story is told in one line of words after another\n"
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text(line * (2 * tokenizing.PIECE // len(line)))
    long.write_text(line * (megabytes * 1_000_000 // len(line)))
    command = [sys.executable, "-c", PEAK, str(short), str(long)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    predictions, grown = map(float, done.stdout.split())
    assert predictions > megabytes * 100_000
    assert grown < 50  # MiB; read as a whole, 1 MB takes over 100
