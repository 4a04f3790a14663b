"""Prune a tiny random model of every decoder-only language model that the installed transformers knows.

`python -m tests.families.sweep` appends one line for every family to `results.jsonl`, and leaves out those
that are there; `--again` takes them anew. `python -m tests.families.table` writes the table from these lines.

One process for each family prunes it in every way; a second one, in which llmprune was never imported, loads
all folders that the first has written, and compares their logits. Both are forked from a process that has
only imported transformers, which takes seconds to import.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from tests.families import configs

RESULTS = Path(__file__).with_name("results.jsonl")
LIMIT_S = 180
PROBE = 24  # tokens
UNITS = {"name": "units", "multiple": 8}
CUT = {"method": "wanda", "sparsity": 0.3, "repair": "none", "calibration": {"samples": 4, "length": 32}}
WAYS: dict[str, dict[str, Any]] = {  # what a column of the table asks for
    "2:4": {"method": "wanda", "pattern": "2:4", "calibration": {"samples": 4, "length": 32}},
    "channels": CUT | {"pattern": UNITS | {"parts": "ffn"}, "layout": "uniform"},
    "channels by block": CUT
    | {"pattern": UNITS | {"parts": "ffn"}, "layout": "per_layer", "allocation": {"name": "ramp"}},
    "heads": CUT | {"pattern": UNITS | {"parts": "attention"}, "layout": "uniform", "sparsity": 0.5},
    "blocks": {"pattern": {"name": "blocks", "remove": [1]}},
    "vocabulary": {"pattern": {"name": "vocabulary", "keep": 384}},
}
OK = "ok"
Row = dict[str, Any]


def model(family: str) -> PreTrainedModel:
    """A random model, the same each time; its weights are large enough for the layers to matter."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(configs.config(family), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return made


def prune_every_way(family: str, folder: Path, row: Row) -> None:
    """Build the family's model in `folder`, prune it in every way, and note in `row` how that ended."""
    from llmprune import prune
    from llmprune.checkpoint import reload
    from tests.vocabulary import tokenizers_here

    def expect(out: Path, logits: torch.Tensor, ids: torch.Tensor, how: Any) -> Any:
        """In the place of the check: keep what the other process is to find."""
        torch.save((ids, logits), folder / f"{row['way']}.expected")
        return {"line": "", "compared": "logits", "max_abs_logit_difference": 0.0}

    reload.check = expect
    try:
        model(family).save_pretrained(folder / "dense")
        dense = AutoModelForCausalLM.from_pretrained(folder / "dense").eval()
        with torch.no_grad():
            stock = dense(torch.arange(3, 3 + PROBE)[None], use_cache=False).logits
    except Exception as error:
        row["built"] = " ".join(str(error).split()) or type(error).__name__
        return
    row |= {"built": OK, "class": type(dense).__name__, "parameters": dense.num_parameters()}
    tokenizers_here.tokenizer("byte level").save_pretrained(folder / "dense")
    note(row, "walk", lambda: require_close(walked(folder / "dense"), stock))
    for way, asked in WAYS.items():
        note(row, way, lambda way=way, asked=asked: prune(str(folder / "dense"), asked, out=folder / way))


def note(row: Row, way: str, act: Callable[[], object]) -> None:
    """Do one thing, and note how it ended: `ok`, the sentence of a refusal, or what broke."""
    from llmprune.errors import LlmpruneError

    row["way"] = way
    try:
        act()
        row[way] = OK
    except LlmpruneError as error:
        row[way] = re.sub(r"\S*/(?=dense\b)", "", " ".join(str(error).split()))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row[way] = f"CRASH {type(error).__name__} in {Path(where.filename).name}: {error}"


def walked(folder: Path) -> torch.Tensor:
    """The logits that come out of a walk over the blocks, read one by one from their files."""
    from llmprune.checkpoint import reader, source
    from llmprune.model.sites.linear import LinearLayers
    from llmprune.walk.walk import Walk

    found, kind = source.find(str(folder)), LinearLayers()
    store = reader.open_streamed(found, reader.blueprint(found, kind), torch.float32, torch.device("cpu"))
    walk = Walk(store, [], torch.arange(3, 3 + PROBE)[None])
    with torch.no_grad():
        for _ in walk.stages("walking"):
            pass
        return walk.logits()


def require_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Logits differ by no more than rounding explains."""
    difference = float((found - expected).abs().max())
    if not difference <= 1e-4 * float(expected.abs().max()):
        raise AssertionError(f"the logits are off by {difference:.3g} of {float(expected.abs().max()):.3g}")


@torch.no_grad()
def reload_all(folder: Path, row: Row) -> None:
    """Load every folder that pruning has written with plain transformers; compare the logits."""
    for way in WAYS:
        if row.get(way) != OK:
            continue
        ids, expected = torch.load(folder / f"{way}.expected")
        try:
            loaded = AutoModelForCausalLM.from_pretrained(folder / way, trust_remote_code=True).eval()
            require_close(loaded(ids, use_cache=False).logits, expected)
        except Exception as error:
            row[way] = f"WRONG once loaded: {type(error).__name__}: {error}"


def in_child(act: Callable[[str, Path, Row], None], family: str, folder: Path, row: Row, limit: float) -> Row:
    """Do something in a process of its own, within `limit` seconds; return the row as it left it."""
    file = folder / "row.json"
    file.write_text(json.dumps(row))

    def run() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            act(family, folder, row)
        finally:
            file.write_text(json.dumps(row))

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(limit)
    if child.is_alive():
        child.kill()
        child.join()
        return row | {"built": f"it did not end within {limit:g} s"}
    found: Row = json.loads(file.read_text())
    return found if child.exitcode == 0 else found | {"built": f"CRASH with exit code {child.exitcode}"}


def sweep(family: str, limit: float) -> Row:
    """The row of one family."""
    start = time.monotonic()
    row: Row = {"family": family, "transformers": transformers.__version__}
    folder = Path(tempfile.mkdtemp(prefix=f"sweep-{family}-"))
    try:
        row = in_child(prune_every_way, family, folder, row, limit)
        if row["built"] == OK:
            row = in_child(lambda _, place, it: reload_all(place, it), family, folder, row, limit)
    finally:
        shutil.rmtree(folder)
    row.pop("way", None)
    return row | {"seconds": round(time.monotonic() - start, 1)}


def read(file: Path = RESULTS) -> dict[str, Row]:
    """The rows by family."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {row["family"]: row for row in map(json.loads, lines)}


def main() -> None:
    """Sweep the families that have no line yet."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("families", nargs="*", help="only these")
    asked.add_argument("--results", type=Path, default=RESULTS)
    asked.add_argument("--again", action="store_true", help="also those that have a line")
    asked.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for a process")
    given = asked.parse_args()
    torch.set_num_threads(1)  # before the first fork: threads do not survive one
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    families = given.families or configs.names()
    if given.again:
        kept = [row for family, row in read(given.results).items() if family not in families]
        given.results.write_text("".join(json.dumps(row) + "\n" for row in kept))
    done = read(given.results)
    for family in families:
        if family not in done:
            row = sweep(family, given.limit)
            with given.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)  # noqa: T201 - a script


if __name__ == "__main__":
    main()
