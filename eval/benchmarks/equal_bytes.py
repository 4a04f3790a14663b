"""Pruned models beside the dense one's quants: what a file of so many bytes is worth.

Every form of a model is written as GGUF files of three types. Told of each file are its bytes; its speed in
llama.cpp over the dense f16 file's, both in turns; bits per byte of pieces of C4 and Wikipedia that neither
taught nor chose (`held_out.py`), each 480 characters after <|endoftext|>; and the KL divergence of the dense
model in float32 (transformers) to the file (llama.cpp) on the same pieces. Where the vocabulary was cut, the
dense model is renormalised over the tokens that stayed, on the pieces whose tokens all stayed (`shared`).
`sharp` is scored on the folder, or on a quant of the dense model as transformers reads it, in bfloat16.

Pruned and taught on C4, Wikipedia and WikiText-2 validation, without the documents that report.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from against_authors import FIXED, write
from held_out import documents
from llmprune_eval import bench, bootstrap, comparison, logits, tasks
from llmprune_eval.engine import Engine
from llmprune_eval.runner import Load
from rows import Recipe
from shared_beginnings import SharedBeginnings
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabulary import FIRST, column, spread

import llmprune
from llmprune import report
from llmprune.checkpoint import devices
from llmprune.export.gguf import export
from llmprune.progress import track
from llmprune.recipe.text import load_data
from llmprune.tensors.agreement import Agreement, agreement
from llmprune.vocabulary.shared import shared

PIECE, CONTEXT = 480, 512  # characters; tokens that no piece exceeds
TYPES = ("f16", "q8_0", "q4_0")
FORMS: dict[str, Recipe] = {
    "dense": {},
    "vocabulary": {"pattern": {"name": "vocabulary", "keep": 32256}},
    "vocabulary-64k": {"pattern": {"name": "vocabulary", "keep": 65536}},
    "width": {"method": "cfsp", "sparsity": 0.34, "repair": FIXED},
    "depth-25-healed": {
        **{"method": "shortgpt", "pattern": "blocks", "sparsity": 0.25, "repair": "span"},
        "recovery": {"name": "distill"},
    },
    **{name: {"recipe": name} for name in ("small", "smaller", "small-english")},
}
LOAD = Load(prompt=256, new_tokens=32, seconds=30.0)


@dataclass(frozen=True)
class Piece:
    """A text with the dense model's tokens of it, FIRST in front [L]."""

    text: str
    ids: Tensor


class Scale:
    """What forms of one model are measured by."""

    def __init__(self, model: Path, shared: Path, work: Path, pieces: int, limit: int) -> None:
        self.model, self._work, self._data = model, work, shared / "data"
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._sharp = tasks.ask("sharp", limit=limit or None, data=self._data)
        texts = {name: "\n\n".join(documents(shared, name, "reporting")) for name in ("c4", "wikipedia")}
        self._pieces = [
            Piece(part, _ids(self._tokenizer, part))
            for text in texts.values()
            for part in spread(text, pieces // 2, PIECE)
        ]
        self._texts = ",".join(map(str, self._teaching(shared)))

    @cached_property
    def _dense(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).to(devices.kind()).eval()

    def _teaching(self, shared: Path) -> list[Path]:
        """Files of what calibrates and teaches."""
        files = []
        for name in ("c4", "wikipedia"):
            files.append(self._work / f"{name}.jsonl")
            lines = [json.dumps({"text": text}) for text in documents(shared, name, "teaching")]
            files[-1].write_text("\n".join(lines))
        files.append(self._work / "wikitext2.jsonl")
        validation = column(self._data, "Salesforce/wikitext/wikitext-2-raw-v1/validation.parquet")
        files[-1].write_text(json.dumps({"text": "".join(validation)}))
        return files

    def folder(self, form: str, tokens: str) -> Path:
        """A form of the model, made unless it is there."""
        if form == "dense":
            return self.model
        asked = dict(FORMS[form])
        if name := asked.pop("recipe", None):
            asked = load_data(str(name))
        if taught := asked.get("recovery"):
            asked["recovery"] = {**taught, "tokens": tokens}
        asked["calibration"] = {"dataset": self._texts, "samples": 48, "length": 512, "seed": 0}
        out = self._work / form
        llmprune.prune(self.model, asked, out=out, resume=True)
        return out

    def file(self, form: str, folder: Path, kind: str) -> Path:
        """A form as a file, written unless it is there."""
        out = self._work / f"{form}-{kind}.gguf"
        return out if out.is_file() else export(folder, out, kind)

    def measured(self, form: str, kind: str, base: Path, tokens: str) -> dict[str, Any]:
        """The row of a file, but for `sharp`."""
        folder = self.folder(form, tokens)
        file = self.file(form, folder, kind)
        row: dict[str, Any] = {"name": f"{form}-{kind}", "asked": FORMS[form], "bytes": file.stat().st_size}
        if form != "dense":
            made = report.read(folder)
            row |= {"parameters": made.totals["parameters_after"], "seconds": made.time["total_s"]}
            row |= {"taught": made.recovery.get("trained_tokens")} if made.recovery else {}
        return row | self.divergence(file, AutoTokenizer.from_pretrained(folder)) | speed(file, base)

    def sharp(self, form: str, kind: str, tokens: str) -> dict[str, Any]:
        """The share of the dense model's points above chance that a form keeps, or a quant."""
        dense = self._scored("dense", TYPES[0], tokens)
        found = self._scored(form, kind, tokens)
        scores = {task: one[one["metric"]] for task, one in found["tasks"].items()}
        return {**comparison.of(dense, found)["kept"]["sharp"], "scores": scores}

    def _scored(self, form: str, kind: str, tokens: str) -> dict[str, Any]:
        """The scores of a form, kept in a file."""
        kept = self._work / f"{form}-{kind}-sharp.json"
        if not kept.exists():
            folder, read_as = self.folder(form, tokens), {"trust_remote_code": True}
            tokenizer = AutoTokenizer.from_pretrained(folder)
            if form == "dense" and kind != TYPES[0]:
                file = self.file(form, folder, kind)
                folder, read_as = file.parent, {"gguf_file": file.name}
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **read_as)
            model = model.to(devices.kind()).eval()
            kept.write_text(json.dumps(tasks.score(model, tokenizer, self._sharp, SharedBeginnings)))
        found: dict[str, Any] = json.loads(kept.read_text())
        return found

    @torch.no_grad()
    def divergence(self, file: Path, tokenizer: Any) -> dict[str, Any]:
        """Bits per byte of all pieces; KL, and how often both say the same, on those whose tokens stayed."""
        engine = Engine(file, CONTEXT)
        common = shared(tokenizer.get_vocab(), self._tokenizer.get_vocab())
        nats: list[float] = []
        found: list[Agreement] = []
        for piece in track(self._pieces, file.name, len(self._pieces)):
            ids = _ids(tokenizer, piece.text)
            said = torch.cat([part for _, part in engine.pieces(ids)])[:-1].log_softmax(-1)
            nats.append(-float(said.gather(1, ids[1:, None]).sum()))
            if common.pruned_ids(piece.ids) is None:
                continue
            found.append(agreement(common.of_dense(self._meant(piece)), common.of_pruned(said)))
        if not found:
            raise SystemExit(f"no piece keeps all its tokens in {file.name}; ask for more --pieces")
        each = [one.kl / one.predictions for one in found]
        top1, interval = quotient([one.same for one in found], [one.predictions for one in found])
        size = sum(len(piece.text.encode()) for piece in self._pieces)
        return {
            "bits_per_byte": sum(nats) / math.log(2) / size,
            "nats_pieces": nats,
            "kl": sum(each) / len(each),
            "kl_interval": bootstrap.spread(each),
            "kl_pieces": each,
            "top1": top1,
            "top1_interval": interval,
            "shared": len(found) / len(self._pieces),
        }

    def _meant(self, piece: Piece) -> Tensor:
        """The dense model's logits [L - 1, V] after each token but the last."""
        return torch.cat([part.cpu() for _, part in logits.pieces(self._dense, piece.ids)])[:-1]


def _ids(tokenizer: Any, text: str) -> Tensor:
    first = tokenizer.convert_tokens_to_ids(FIRST)
    return torch.tensor([first, *tokenizer(text, add_special_tokens=False)["input_ids"]])


def over_dense(row: dict[str, Any], out: Path) -> dict[str, Any]:
    """A row with its bits per byte over the dense f16 file's, on the same pieces."""
    base = row_file(out, "dense", TYPES[0])
    dense = row if base.stem == row["name"] else json.loads(base.read_text())
    ratio, interval = quotient(row["nats_pieces"], dense["nats_pieces"])
    return row | {"bits_ratio": ratio, "bits_ratio_interval": interval}


def quotient(first: Sequence[float], second: Sequence[float]) -> tuple[float, list[float] | None]:
    """A sum over another of the same pieces, and its interval by drawing pieces."""
    drawn = bootstrap.paired(first, second)
    wide = len(first) >= bootstrap.FEWEST
    return sum(first) / sum(second), bootstrap.interval(drawn[:, 0] / drawn[:, 1]) if wide else None


def speed(file: Path, base: Path) -> dict[str, Any]:
    """Over the dense f16 file, in turns."""
    both = [str(base), str(file)]
    found = bench.compare(both, LOAD, {})
    return {"ratios": found["ratios"], "models": found["models"], "speed_protocol": found["protocol"]}


def main() -> None:
    """Measure the files that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path, help="where folders and files are kept")
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--tokens", default="48k", help="that teach")
    parser.add_argument("--pieces", type=int, default=128)
    parser.add_argument("--limit", type=int, default=200, help="questions of each task of sharp; 0 for none")
    asked = parser.parse_args()
    if "dense" not in asked.forms and not row_file(asked.out, "dense", TYPES[0]).exists():
        parser.error("the dense f16 file is not measured yet; add dense to --forms")
    asked.work.mkdir(parents=True, exist_ok=True)
    scale = Scale(asked.model, asked.shared, asked.work, asked.pieces, asked.limit)
    base = scale.file("dense", asked.model, TYPES[0])
    for form in asked.forms:
        for kind in TYPES:
            if not row_file(asked.out, form, kind).exists():
                tell(asked, over_dense(scale.measured(form, kind, base, asked.tokens), asked.out))
    for form, kind in questioned(asked.forms) if asked.limit else []:
        row = json.loads(row_file(asked.out, form, kind).read_text())
        if "sharp" not in row:
            tell(asked, row | {"sharp": scale.sharp(form, kind, asked.tokens)})


def tell(asked: argparse.Namespace, row: dict[str, Any]) -> None:
    """Write a row."""
    print(row["name"], row["bytes"], row["kl"], row["bits_per_byte"], row.get("sharp"), flush=True)
    write(asked.out, str(__doc__), str(asked.model), row)


def questioned(forms: list[str]) -> list[tuple[str, str]]:
    """The files whose model is asked questions: one of each form, and a quant of the dense model."""
    return [(form, TYPES[0]) for form in forms] + [("dense", "q4_0")] * ("dense" in forms)


def row_file(out: Path, form: str, kind: str) -> Path:
    """Where the figures of a file stand."""
    return out / f"{form}-{kind}.json"


if __name__ == "__main__":
    main()
