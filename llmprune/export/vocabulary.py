"""The tokenizer's fields of a GGUF file: those of another file, or what tokenizer.json says."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf

from llmprune.errors import RequestError
from llmprune.export.families import BYTE_PAIRS, RULES
from llmprune.export.layers import Layers

PREFIX = "tokenizer."


def add_like(writer: gguf.GGUFWriter, file: Path, rows: int) -> None:
    """Copy the tokenizer of a GGUF file of the same vocabulary.

    Raises:
        RequestError: it is no such file, or has another number of tokens.
    """
    try:
        fields = gguf.GGUFReader(file).fields
        tokens = len(fields["tokenizer.ggml.tokens"].data)
        copied = {key: field for key, field in fields.items() if key.startswith(PREFIX)}
        values = {key: (field.contents(), field.types) for key, field in copied.items()}
    except (OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise RequestError("like", f"{file} is no whole GGUF file with a tokenizer; name another") from error
    if tokens != rows:
        raise RequestError("like", f"{file} has {tokens} tokens, and the model has {rows}; name another")
    for key, (value, types) in values.items():
        writer.add_key_value(key, value, types[0], types[-1] if len(types) > 1 else None)


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
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(known.get(number, f"[PAD{number}]"))
            kinds.append(gguf.TokenType.NORMAL if number in known else gguf.TokenType.UNUSED)
    return tokens, [int(kind) for kind in kinds]
