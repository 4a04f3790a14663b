"""Bits per byte of a model whose vocabulary was cut, beside the dense model's.

Tokens are chosen on C4 without its last 40 documents, Wikipedia, and WikiText-2 validation, read whole.
Bits per byte are measured on pieces of WikiText-2 test and of those last 40 documents, 4,000 characters each
and evenly spread, the same for every model: the negative log2-likelihood of all tokens over the UTF-8 bytes,
in windows of 1,024 tokens of the model's own tokenizer, the first of which is <|endoftext|> and not counted.
What has a result already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas
import torch
from against_authors import write
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmprune
from llmprune.progress import track

HELD_OUT = 40  # documents of C4 that only report
LENGTH = 1024
PIECE = 4000  # characters
FIRST = "<|endoftext|>"


def column(data: Path, file: str) -> list[str]:
    """The texts of one table."""
    return [str(text) for text in pandas.read_parquet(data / file)["text"]]


def texts(data: Path, pieces: int) -> dict[str, list[str]]:
    """Pieces of what is measured, by name."""
    wikitext = column(data, "Salesforce/wikitext/wikitext-2-raw-v1/test.parquet")
    c4 = column(data, "calib/c4/train.parquet")[-HELD_OUT:]
    found = {"wikitext2-test": "\n\n".join(wikitext), "c4-held-out": "\n\n".join(c4)}
    return {name: spread(text, pieces) for name, text in found.items()}


def spread(text: str, pieces: int, size: int = PIECE) -> list[str]:
    """Evenly spread pieces of a text."""
    step = len(text) // pieces
    return [text[start : start + size] for start in range(0, step * pieces, step)]


def calibration(data: Path, work: Path) -> str:
    """The texts that tokens are chosen on, as a recipe names them."""
    known = work / "c4-known.jsonl"
    lines = [json.dumps({"text": text}) for text in column(data, "calib/c4/train.parquet")[:-HELD_OUT]]
    known.write_text("\n".join(lines))
    validation = data / "Salesforce/wikitext/wikitext-2-raw-v1/validation.parquet"
    return ",".join(map(str, (known, data / "calib/wikipedia/train.parquet", validation)))


@torch.no_grad()
def bits_per_byte(folder: Path, measured: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Of every text, with its number of tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    first = torch.tensor([tokenizer.convert_tokens_to_ids(FIRST)])
    found = {}
    for name, pieces in measured.items():
        every = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in pieces]
        nats = 0.0
        for window in track([part for ids in every for part in ids.split(LENGTH - 1)], name):
            logits = model(torch.cat([first, window])[None, :-1], use_cache=False).logits[0]
            nats += float(cross_entropy(logits, window, reduction="sum"))
        size = sum(len(text.encode()) for text in pieces)
        found[name] = {
            "bits_per_byte": nats / math.log(2) / size,
            "bytes": size,
            "tokens": sum(len(ids) for ids in every),
        }
    return found


def main() -> None:
    """Measure the dense model, then one of each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder with calib/ and Salesforce/")
    parser.add_argument("--keep", type=int, nargs="+", required=True)
    parser.add_argument("--pieces", type=int, default=8, help="of each text")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the pruned models")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    asked = parser.parse_args()
    for folder in (asked.work, asked.out):
        folder.mkdir(parents=True, exist_ok=True)
    measured, chosen_on = texts(asked.data, asked.pieces), calibration(asked.data, asked.work)
    dense: dict[str, Any] = {}
    for keep in (None, *asked.keep):
        name = "dense" if keep is None else str(keep)
        file = asked.out / f"{name}.json"
        if not file.exists():
            folder, result = asked.model, {"name": name, "pieces": asked.pieces, "characters": PIECE}
            if keep is not None:
                folder = asked.work / f"{asked.out.parent.name}-{keep}"
                pattern = {"name": "vocabulary", "keep": keep}
                recipe = {"pattern": pattern, "calibration": {"dataset": chosen_on}}
                said = llmprune.prune(asked.model, recipe, out=folder, resume=True).vocabulary
                assert said is not None
                result["vocabulary"] = said | {"text": "C4 but its last 40, Wikipedia, WikiText-2 validation"}
            result["texts"] = bits_per_byte(folder, measured)
            for text, found in result["texts"].items() if dense else ():
                found["times_dense"] = found["bits_per_byte"] / dense[text]["bits_per_byte"]
            write(asked.out, str(__doc__), asked.out.parent.name, result)
        print(file, file.read_text())
        dense = dense or json.loads(file.read_text())["texts"]


if __name__ == "__main__":
    main()
