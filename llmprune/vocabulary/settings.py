"""Ids of tokens in the other files of a checkpoint: config, generation config, and the tokenizer's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmprune.errors import RequestError, first_line

Json = dict[str, Any]  # an object as json reads it
ENDINGS = ("_token_id", "_token_ids", "_token_index")
LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
SIZE, PER_LAYER = "vocab_size", "vocab_size_per_layer_input"
BY_ID = "added_tokens_decoder"  # its keys are ids
FILES = ("generation_config.json", "tokenizer_config.json")
REPLACED = ("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
"""Files that say the same as tokenizer.json, in older ways."""


def read(file: Path) -> Json:
    """One of these files.

    Raises:
        RequestError: it is no JSON object.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError("model", f"{file} cannot be read ({first_line(error)}); mend it") from error
    if not isinstance(said, dict):
        raise RequestError("model", f"{file} is no JSON object; mend it")
    return said


def ids(settings: Json) -> set[int]:
    """All ids of tokens that a file names."""
    return {number for value in _named(settings) for number in _numbers(value)}


def _named(settings: Json) -> Iterator[object]:
    for key, value in settings.items():
        if names_ids(key):
            yield value
        elif key == BY_ID and isinstance(value, dict):
            yield [int(number) for number in value]
        elif isinstance(value, dict):
            yield from _named(value)


def names_ids(key: str) -> bool:
    """Whether a setting holds ids of tokens."""
    return key.endswith(ENDINGS) or key in LISTS


def _numbers(value: object) -> Iterator[int]:
    if isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def renumbered(settings: Json, new: Mapping[int, int], sizes: Mapping[str, int] | None = None) -> Json:
    """The settings of a model that keeps some of its tokens.

    Args:
        settings: of the dense model.
        new: the new id of every token that stays, by its old one; ids that are no token's stay as they are.
        sizes: what `vocab_size` and the like become.
    """
    done: Json = {}
    for key, value in settings.items():
        if names_ids(key):
            done[key] = _mapped(value, new)
        elif key == BY_ID and isinstance(value, dict):
            done[key] = {str(new.get(int(number), int(number))): token for number, token in value.items()}
        elif isinstance(value, dict):
            done[key] = renumbered(value, new, sizes)
        else:
            done[key] = (sizes or {}).get(key, value)
    return done


def _mapped(value: Any, new: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_mapped(inner, new) for inner in value]
    return new.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value
