"""Choose the tokens that stay, before a weight is read, and count what that costs the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from llmprune.checkpoint import source
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.patterns.vocabulary import Vocabulary
from llmprune.progress import say
from llmprune.recipe import Recipe
from llmprune.text.sources.base import Documents, TextSource
from llmprune.text.sources.none import Nothing
from llmprune.text.tokenizing import tokenize, tokens
from llmprune.vocabulary import bpe, settings
from llmprune.vocabulary.choice import Kept, VocabularyRecord, closed, ordered

ROLES = ("system", "user", "assistant", "tool")  # that a chat template is called with


def kept(found: Source, recipe: Recipe, anatomy: Anatomy) -> Kept | None:
    """The tokens that stay; None where the pattern leaves the vocabulary alone.

    Raises:
        RequestError: the tokenizer cannot be cut, or not to this size, or there is no such text.
    """
    pattern, total = recipe.pattern, anatomy.vocabulary
    if not isinstance(pattern, Vocabulary):
        return None
    data = bpe.read(found.folder)
    tokenizer = source.tokenizer(found.folder, trust_remote_code=found.trust_remote_code)
    listed = bpe.vocabulary(data)
    unlisted = {
        token: number for token, number in sorted(tokenizer.get_vocab().items()) if token not in listed
    }
    data = bpe.completed(data, unlisted)
    _require_rows(bpe.vocabulary(data), total)
    made_of = bpe.parts(data)
    needed = closed(_required(data, found, tokenizer, total), made_of)
    _require_possible(pattern, len(needed), total)
    counts = uses(recipe.calibration.source, tokenizer, total)
    order = ordered(counts.tolist(), made_of, bpe.ranks(data), needed)
    text = int(counts.sum()) if isinstance(recipe.calibration.source, Documents) else None
    return Kept(tuple(sorted(order[: pattern.rows])), total, text, unlisted)


def _require_rows(known: dict[str, int], total: int) -> None:
    last = max(known, key=lambda token: known[token])
    if known[last] >= total:
        raise RequestError(
            "tokenizer",
            f"its token {last!r} has the id {known[last]}, and the model has {total} rows; use the tokenizer "
            "that it was trained with",
        )


def _required(data: bpe.Json, found: Source, tokenizer: Any, total: int) -> set[int]:
    """Ids that must stay: of bytes, of special and added tokens, of the chat template, and in the configs."""
    named = settings.ids(found.settings)
    for name in settings.FILES:
        if (found.folder / name).is_file():
            named |= settings.ids(settings.read(found.folder / name))
    chat = {int(i) for text in _literals(tokenizer.chat_template) for i in tokenize(text, tokenizer)}
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return bpe.required(data) | chat | {number for number in named | special if 0 <= number < total}


def _literals(templates: str | dict[str, str] | None) -> list[str]:
    """The texts that a chat template puts around messages.

    Raises:
        RequestError: it is no template.
    """
    if not templates:
        return []
    found = list(ROLES)
    reader = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers renders it
    try:
        for template in [templates] if isinstance(templates, str) else templates.values():
            pieces = reader.lexer.tokenize(template)
            found += [str(piece.value) for piece in pieces if piece.type in ("data", "string")]
    except jinja2.TemplateError as error:
        raise RequestError("tokenizer", f"its chat template cannot be read ({error}); mend it") from error
    return [text for text in found if text]


def _require_possible(pattern: Vocabulary, needed: int, total: int) -> None:
    step = pattern.multiple
    least, most = -(-needed // step) * step, (total - 1) // step * step
    if pattern.size < total and least <= pattern.rows:
        return
    way_out = f"ask for {least} to {most}" if least <= most else "leave the vocabulary as it is"
    raise RequestError(
        "pattern.keep",
        f"{pattern.size} rows were asked, and the model has {total}, of which bytes, special and chat tokens "
        f"need {needed}; {way_out}",
    )


def uses(text: TextSource, tokenizer: Any, total: int) -> Tensor:
    """How often a text uses each of the vocabulary's rows [V]; zeros where none is named.

    Raises:
        RequestError: there is no such text.
    """
    counts = torch.zeros(total, dtype=torch.int64)
    if isinstance(text, Nothing):
        return counts
    if not isinstance(text, Documents):
        raise RequestError(
            "calibration", f"{text.dataset} is no text whose tokens can be counted; name a text"
        )
    say(f"counting the tokens of {text.dataset}")
    for ids in tokens(text.read("calibration", tokenizer=tokenizer), tokenizer):
        counts += torch.bincount(ids, minlength=total)
    return counts


def record(chosen: Kept, text: TextSource, written: Path, *, trust: bool) -> VocabularyRecord:
    """What the report says of the vocabulary, given the folder that holds the new tokenizer."""
    counted = chosen.text_tokens is not None
    after = None
    if counted:
        tokenizer = source.tokenizer(written, trust_remote_code=trust)
        after = int(uses(text, tokenizer, len(chosen.rows)).sum())
    return {
        "rows_before": chosen.total,
        "rows_after": len(chosen.rows),
        "text": text.dataset if counted else None,
        "text_tokens_before": chosen.text_tokens,
        "text_tokens_after": after,
    }
