"""Scores: what calibration measured of every site of a dense model, on disk, one file for each block.

Layers that read the same tensor share a statistic, which is written once, under the name of the first.

Letters used in shapes: S sampled tokens, I input features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor

from llmprune.errors import JobError, RequestError, first_line
from llmprune.model.anatomy import Anatomy
from llmprune.paths import UNFINISHED
from llmprune.report import CalibrationRecord, ModelFacts, Spent
from llmprune.tensors.several import kinds_of
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.tensors.stored import restore, tensors_of
from llmprune.walk.observation import Observation
from llmprune.walk.pausing import device_of
from llmprune.walk.stage import Call, Stage

STEM = "scores"
FILE = "scores.json"  # beside the blocks, written last


class ScoreRecord(BaseModel):
    """What was measured, of which model, on which text."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    schema_: Literal[1] = Field(1, alias="schema")
    model: ModelFacts
    files: dict[str, str]
    """The sha256 of the model's config and of every weight file."""
    asked: dict[str, object]
    """The recipe as the user gave it, which is that of a pruning unless it says otherwise."""
    recipe: dict[str, Any]
    """The same with every default filled in."""
    statistics: list[str]
    """Kinds of what is held of every site."""
    calibration: CalibrationRecord
    bytes: int
    time: Spent
    device: str
    dtype: str
    versions: dict[str, str]


def read(folder: Path) -> ScoreRecord:
    """The record of finished scores.

    Raises:
        RequestError: there are none, or they are unfinished or cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        way_out = "name a folder that `llmprune score` wrote"
        if (folder / UNFINISHED).is_dir():
            way_out = "finish it: `llmprune score` as before, with --resume"
        raise RequestError("scores", f"{folder} holds no {FILE}; {way_out}")
    try:
        return ScoreRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            "scores", f"{file} cannot be read as llmprune's ({first_line(error)}); score anew"
        ) from error


class Scores:
    """A folder of scores, read one block at a time.

    Args:
        folder: that `llmprune score` has finished.
        kind: the statistic that they hold of every site.
        text: on which they were measured.
    """

    def __init__(self, folder: Path, kind: type[Statistic], text: CalibrationRecord | None) -> None:
        self.folder, self.text = folder, text
        self._kind = kind

    def stage(self, anatomy: Anatomy, index: int, hidden: list[Tensor], calls: list[Call]) -> Stage:
        """One resident block whose sites are read instead of measured."""
        return _Scored(anatomy, index, hidden, calls, self)

    def block(self, index: int, device: torch.device) -> tuple[dict[str, Observation], dict[str, Any]]:
        """What is known of the sites of a block, by their names, and of the block itself.

        Raises:
            JobError: its file is missing or damaged.
        """
        name = next((file for file in self.folder.glob(f"{STEM}-{index + 1:05d}-of-*")), f"block {index}")
        try:
            tensors = load_file(name)
        except Exception as error:  # safetensors has errors of its own
            raise JobError(
                f"the scores {name} of {self.folder} cannot be read ({first_line(error)}); score anew"
            ) from error
        facts = json.loads(bytes(tensors.pop("facts").tolist()))
        seen = {name: self._observation(name, told, tensors, device) for name, told in facts["own"].items()}
        return {site: seen[name] for site, name in facts["sites"].items()}, facts

    def angle(self, index: int) -> float:
        """The mean angle between the input and the output of a block, as a share of pi."""
        angle: float = self.block(index, torch.device("cpu"))[1]["angle"]
        return angle

    def require(self, needs: type[Statistic]) -> None:
        """Refuse to be asked for a statistic that is not held.

        Raises:
            RequestError: it names the statistic.
        """
        for kind in kinds_of(needs):
            if kind is not Nothing and not any(issubclass(held, kind) for held in kinds_of(self._kind)):
                held = " and ".join(one.__name__ for one in kinds_of(self._kind))
                raise RequestError(
                    "scores",
                    f"{self.folder} holds {held} of every layer, and {kind.__name__} is needed; score with "
                    "the repair and the allocation that prune, or leave --scores out",
                )

    def _observation(
        self, name: str, told: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
    ) -> Observation:
        start = f"{name}:"
        own = {key.removeprefix(start): x for key, x in tensors.items() if key.startswith(start)}
        rows = [own.pop("sample").to(device)] if "sample" in own else []
        statistic = self._kind(told["features"], device)
        restore(statistic, own)
        return Observation(statistic, told["every"], rows, told["notes"])


class _Scored(Stage):
    """One resident block whose sites were measured before; no text passes through it."""

    def __init__(
        self, anatomy: Anatomy, index: int, hidden: list[Tensor], calls: list[Call], scores: Scores
    ) -> None:
        super().__init__(anatomy, index, hidden, calls)
        self._scores = scores

    def observe(self, needs: type[Statistic]) -> dict[str, Observation]:
        """What was measured of every site in the dense model."""
        self._scores.require(needs)
        seen, facts = self._scores.block(self.index, device_of(self.block))
        self.forward_s = facts["forward_s"]
        return seen

    def angle(self) -> float:
        """The mean angle between the block's input and output, as a share of pi."""
        return self._scores.angle(self.index)


def measured(stage: Stage, needs: type[Statistic]) -> dict[str, Tensor]:
    """Measure the sites of a resident block; return what is to be written of it."""
    owners: dict[int, str] = {}
    sites: dict[str, str] = {}
    own: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for site, seen in list(stage.visit(needs, "dense", together=False)):
        name = sites[site.name] = owners.setdefault(id(seen), site.name)
        if name != site.name:
            continue
        own[name] = {"features": seen.statistic.features, "every": seen.every, "notes": seen.notes}
        tensors |= {f"{name}:{key}": x for key, x in tensors_of(seen.statistic).items()}
        tensors |= {f"{name}:sample": seen.sample} if seen.rows else {}
    facts = {"sites": sites, "own": own, "angle": stage.angle(), "forward_s": stage.forward_s}
    # JSON bytes in a tensor, because a shard holds tensors only.
    return tensors | {"facts": torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)}
