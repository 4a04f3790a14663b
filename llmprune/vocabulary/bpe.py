"""Cut a byte-pair tokenizer (Sennrich et al., 2016, arXiv:1508.07909), as its tokenizer.json describes it.

Encoding splits a word into characters, then joins neighbours, always the pair whose merge has the lowest
rank, until no pair has a merge. Inside a token this happens the same way whatever stands around it: had a
pair across its border been joined, the token would not have come out. So every token has one last pair of
parts, found by encoding the token alone, and needs these, as they need theirs. A tokenizer that keeps tokens
with their parts, and all merges among kept tokens, takes the same steps as before on every text whose tokens
it has kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmprune.errors import RequestError

FILE = "tokenizer.json"
BYTES = 256
Json = dict[str, Any]  # an object as json reads it
Pair = tuple[str, str]


def read(folder: Path) -> Json:
    """The tokenizer of a folder.

    Raises:
        RequestError: there is none, or none that can be cut.
    """
    file = folder / FILE
    if not file.is_file():
        raise RequestError(
            "pattern",
            f"the vocabulary is cut in {FILE}, and {folder} has none; save its tokenizer there once with "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
        )
    try:
        data: Json = json.loads(file.read_text(encoding="utf-8"))
        kind = data["model"]["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError("pattern", f"{file} cannot be read as a tokenizer; download it again") from error
    why = _obstacle(data, kind)
    if why:
        raise RequestError("pattern", f"the vocabulary cannot be cut: {file} is {why}; prune another pattern")
    return data


def _obstacle(data: Json, kind: str) -> str:
    """Why a tokenizer cannot be cut, by the name of its kind; empty if it can."""
    model = data["model"]
    if kind != "BPE":
        return f"a {kind} tokenizer, and only BPE can"
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"a BPE tokenizer with {option}={model[option]!r}, and only BPE without it can"
    if not model.get("byte_fallback") and not _is_byte_level(data):
        return "a BPE tokenizer of characters, and only one of bytes or with byte fallback can"
    return ""


def _is_byte_level(data: Json) -> bool:
    """Whether text is turned into bytes before it is encoded."""
    steps = [data.get("pre_tokenizer"), data.get("normalizer")]
    return any(found == "ByteLevel" for found in _values(steps, "type"))


def _values(part: object, key: str) -> Iterator[object]:
    """All values of a key, however deep."""
    if isinstance(part, dict):
        yield from (value for name, value in part.items() if name == key)
        part = list(part.values())
    for inner in part if isinstance(part, list) else ():
        yield from _values(inner, key)


def vocabulary(data: Json) -> dict[str, int]:
    """The id of every token, added ones included."""
    added = {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    return {**data["model"]["vocab"], **added}


def completed(data: Json, unlisted: Mapping[str, int]) -> Json:
    """The tokenizer with special tokens that its file lacks: once ids are new, each must be told its own."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    more = [{"id": number, "content": token, **flags, "special": True} for token, number in unlisted.items()]
    return {**data, "added_tokens": [*(data.get("added_tokens") or ()), *more]}


def required(data: Json) -> set[int]:
    """The ids of bytes, of the unknown token, and of all added and special tokens."""
    model = data["model"]
    ids: dict[str, int] = model["vocab"]
    letters = [f"<0x{byte:02X}>" for byte in range(BYTES)] if model.get("byte_fallback") else []
    letters += _letters() if _is_byte_level(data) else []
    names = [*letters, *_values(data.get("post_processor"), "tokens"), model.get("unk_token")]
    known = {ids[name] for name in names if isinstance(name, str) and name in ids}
    added = {token["id"] for token in data.get("added_tokens") or ()}
    return known | added | set(_processed(data.get("post_processor"))) | set(_padding(data))


def _letters() -> list[str]:
    """The characters that stand for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in printable] + [chr(BYTES + n) for n in range(BYTES - len(printable))]


def merges(data: Json) -> list[Pair]:
    """The pairs that are joined, the lowest rank first; older files write them as one string."""
    listed = data["model"]["merges"]
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in listed)
    return [(left, right) for left, right in pairs]


def parts(data: Json) -> dict[int, tuple[int, ...]]:
    """The two parts that are joined last, for every token that encoding can reach; none of a character.

    What is missing can never come out of a text: padding rows, and tokens that other merges prevent.
    """
    model = data["model"]
    ids: dict[str, int] = model["vocab"]
    ranks = {pair: rank for rank, pair in enumerate(merges(data))}
    single = {f"<0x{byte:02X}>" for byte in range(BYTES)} if model.get("byte_fallback") else set()
    found: dict[int, tuple[int, ...]] = {}
    for token, number in ids.items():
        last = _last_pair(token, ranks)
        if last is not None:
            found[number] = ids[last[0]], ids[last[1]]
        elif len(token) == 1 or token in single or model.get("ignore_merges"):  # a whole word is looked up
            found[number] = ()
    return found


def _last_pair(token: str, ranks: Mapping[Pair, int]) -> Pair | None:
    """The parts that are joined last when a token is encoded alone; None if it never comes out."""
    pieces = list(token)
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            return None
        if len(pieces) == 2:
            return best
        place = pairs.index(best)
        pieces[place : place + 2] = ["".join(best)]
    return None


def ranks(data: Json) -> dict[int, int]:
    """The rank of the first merge that makes a token, by its id; characters have none."""
    ids: dict[str, int] = data["model"]["vocab"]
    found: dict[int, int] = {}
    for rank, pair in enumerate(merges(data)):
        found.setdefault(ids["".join(pair)], rank)
    return found


def cut(data: Json, new: Mapping[int, int]) -> Json:
    """The tokenizer of the tokens that stay.

    Args:
        data: of all tokens.
        new: the new id of every token that stays, by its old one.
    """
    model = data["model"]
    vocab = {token: new[number] for token, number in model["vocab"].items() if number in new}
    kept = [
        written
        for written, (left, right) in zip(model["merges"], merges(data), strict=True)
        if left in vocab and right in vocab and left + right in vocab
    ]
    done = {**data, "model": {**model, "vocab": vocab, "merges": kept}}
    done["added_tokens"] = [{**t, "id": new[t["id"]]} for t in data.get("added_tokens") or ()]
    done["post_processor"] = _reprocessed(data.get("post_processor"), new)
    if isinstance(data.get("padding"), dict):
        done["padding"] = {**data["padding"], "pad_id": new[data["padding"]["pad_id"]]}
    return done


def _padding(data: Json) -> Iterator[int]:
    if isinstance(data.get("padding"), dict):
        yield data["padding"]["pad_id"]


def _processed(part: object) -> Iterator[int]:
    """The ids that a post-processor names: of a template (`ids`), or of `sep` and `cls` ([token, id])."""
    for ids in _values(part, "ids"):
        yield from ids if isinstance(ids, list) else ()
    for key in ("sep", "cls"):
        yield from (pair[1] for pair in _values(part, key) if isinstance(pair, list))


def _reprocessed(part: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with the new ids."""
    if isinstance(part, list):
        return [_reprocessed(inner, new) for inner in part]
    if not isinstance(part, dict):
        return part
    done: Json = {}
    for key, value in part.items():
        if key == "ids" and isinstance(value, list):
            done[key] = [new[number] for number in value]
        elif key in ("sep", "cls") and isinstance(value, list):
            done[key] = [value[0], new[value[1]]]
        else:
            done[key] = _reprocessed(value, new)
    return done
