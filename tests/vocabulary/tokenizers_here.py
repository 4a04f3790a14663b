"""Tiny byte-pair tokenizers of both kinds, trained on Python's reference manual."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llmprune.text import sources

SIZE = 448  # rows of the models that go with them; the last ones are no token's
TOKENS = 440
SPECIAL = ["<unk>", "<s>", "</s>"]
CHAT = "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '>' }} {{ m['content'] }}{% endfor %}"


@cache
def text() -> str:
    return sources.for_evaluation("builtin").text("calibration", 60_000)


@cache
def _trained(kind: str) -> str:
    made = Tokenizer(models.BPE())
    if kind == "byte level":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=TOKENS,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator([text()], trainer)
        made.decoder = decoders.ByteLevel()
        made.add_tokens(["<tool>"])
        return made.to_str()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=[*SPECIAL, *bytes_], limit_alphabet=60, show_progress=False
    )
    made.train_from_iterator(text().split("\n"), trainer)
    model = json.loads(made.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made.model = models.BPE(model["vocab"], merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    data = json.loads(made.to_str())
    names = {token["content"] for token in data["added_tokens"]} - set(bytes_)
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in names]
    return json.dumps(data)


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`byte level` or `byte fallback`, which begins every text with <s>, and has a chat template."""
    made = Tokenizer.from_str(_trained(kind))
    first = ("<s>", made.token_to_id("<s>"))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[first])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    found.chat_template = CHAT
    return found
