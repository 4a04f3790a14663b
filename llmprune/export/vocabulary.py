"""The tokenizer of a GGUF file: written from another file or from tokenizer.json, and read again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmprune.errors import RequestError
from llmprune.export.families import BYTE_PAIRS, RULES, WHOLE_WORDS
from llmprune.export.layers import Layers

PREFIX = "tokenizer."


def add_like(writer: gguf.GGUFWriter, file: Path, rows: int) -> None:
    """Copy the tokenizer of a GGUF file of the same vocabulary.

    Raises:
        RequestError: it is no such file, or has another number of tokens.
    """
    fields = fields_of(file, "like")
    tokens = len(fields[f"{PREFIX}ggml.tokens"].data)
    if tokens != rows:
        raise RequestError("like", f"{file} has {tokens} tokens, and the model has {rows}; name another")
    for key, field in fields.items():
        types = field.types
        writer.add_key_value(key, field.contents(), types[0], types[-1] if len(types) > 1 else None)


def fields_of(file: Path, option: str) -> dict[str, gguf.ReaderField]:
    """What a file says of its tokenizer, by name.

    Raises:
        RequestError: it is no such file; the option that named it is told.
    """
    try:
        fields = gguf.GGUFReader(file).fields
        found = {key: field for key, field in fields.items() if key.startswith(PREFIX)}
        for field in found.values():
            field.contents()
        _ = found[f"{PREFIX}ggml.tokens"]
    except (OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise RequestError(option, f"{file} is no whole GGUF file with a tokenizer; name another") from error
    return found


def add_own(writer: gguf.GGUFWriter, layers: Layers, rows: int) -> None:
    """Write the fields from the folder's tokenizer.json.

    Raises:
        RequestError: there is none, or its rules are not known; the way out is `--like`.
    """
    file = layers.folder / "tokenizer.json"
    if not file.is_file():
        raise RequestError(
            "tokenizer", f"{layers.folder} holds no tokenizer.json; name a GGUF file with --like"
        )
    told = json.loads(file.read_text())
    rule = RULES.get(_rule(told))
    if told["model"].get("type") != "BPE" or rule is None:
        raise RequestError(
            "tokenizer",
            "its rules have no name in llama.cpp that is known here; name a GGUF file with --like",
        )
    tokens, kinds = _tokens(told, rows)
    writer.add_tokenizer_model(BYTE_PAIRS)
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    gguf.SpecialVocab(layers.folder, load_merges=True, n_vocab=rows).add_to_gguf(writer, quiet=True)


def _rule(told: dict[str, Any]) -> tuple[tuple[str, object], ...]:
    """What decides where words end, comparable."""
    spec = told.get("pre_tokenizer") or {}
    said = {"Split": lambda one: one["pattern"].get("Regex"), "Digits": lambda one: one["individual_digits"]}
    said["ByteLevel"] = lambda one: one.get("use_regex", True)
    return tuple(
        (one.get("type", ""), said.get(one.get("type"), str)(one))
        for one in spec.get("pretokenizers", [spec])
    )


def _tokens(told: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The token of every row, and its kind; rows without one get a name that no text has."""
    added = {token["id"]: token for token in told.get("added_tokens", [])}
    known = {number: token for token, number in told["model"]["vocab"].items()}
    tokens, kinds = [], []
    for number in range(rows):
        if number in added:
            special = added[number]["special"]
            tokens.append(added[number]["content"])
            kinds.append(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        else:
            tokens.append(known.get(number, f"[PAD{number}]"))
            kinds.append(TokenType.NORMAL if number in known else TokenType.UNUSED)
    return tokens, [int(kind) for kind in kinds]


def tokenizer_of(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that a file describes.

    Raises:
        RequestError: it is no such file, or its rules are not known here.
    """
    told = _told(file)
    rules = {name: rule for rule, name in RULES.items()}
    if not _known(told):
        raise RequestError(
            "model",
            f"the tokenizer of {file} ({told.get('model')}, {told.get('pre')}) is not known here; known are "
            f"{', '.join(rules)}",
        )
    kinds = {number: TokenType(kind) for number, kind in enumerate(told["token_type"])}
    listed = enumerate(told["tokens"])
    named = {token: number for number, token in listed if kinds[number] != TokenType.UNUSED}
    pairs = [tuple(merge.split(" ", 1)) for merge in told["merges"]]
    made = Tokenizer(models.BPE(vocab=named, merges=pairs, ignore_merges=told["pre"] == WHOLE_WORDS))
    made.pre_tokenizer = pre_tokenizers.Sequence([_cutter(*one) for one in rules[told["pre"]]])
    made.decoder = decoders.ByteLevel()
    for number, kind in kinds.items():
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            special = kind == TokenType.CONTROL
            made.add_tokens([AddedToken(told["tokens"][number], special=special, normalized=False)])
    ends = {f"{name}_token": told.get(f"{name}_token_id") for name in ("bos", "eos")}
    ends = {name: told["tokens"][number] for name, number in ends.items() if number is not None}
    if told.get("add_bos_token"):
        begin = ends["bos_token"]
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, told["bos_token_id"])]
        )
    found = PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **ends)
    found.chat_template = told.get(PREFIX + "chat_template")
    return found


def knows(file: Path) -> bool:
    """Whether `tokenizer_of` can read the tokenizer of a file.

    Raises:
        RequestError: it is no whole GGUF file with a tokenizer.
    """
    return _known(_told(file))


def _known(told: dict[str, Any]) -> bool:
    return told.get("model") == BYTE_PAIRS and told.get("pre") in RULES.values()


def _told(file: Path) -> dict[str, Any]:
    """What a file says of its tokenizer, by llama.cpp's names."""
    fields = fields_of(file, "model")
    return {key.removeprefix(PREFIX + "ggml."): field.contents() for key, field in fields.items()}


def _cutter(kind: str, detail: Any) -> Any:
    """One of the rules that cut a text into words."""
    if kind == "Split":
        return pre_tokenizers.Split(Regex(detail), "isolated")
    if kind == "Digits":
        return pre_tokenizers.Digits(individual_digits=detail)
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=detail)
