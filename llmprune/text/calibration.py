"""The `calibration` of a recipe: a text source with its options, and how many windows of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, model_serializer, model_validator

from llmprune.errors import RequestError
from llmprune.text import sources
from llmprune.text.sources.base import TextSource

AMOUNT = ("samples", "length", "seed")


class Calibration(BaseModel):
    """Which text calibrates, and how much of it.

    In a recipe it is one mapping: `dataset` (the name of a file of `llmprune/text/sources/`, a path or a Hub
    id; `builtin` unless given), the options of that source, and the fields below.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: InstanceOf[TextSource]
    """Made from `dataset` and its options."""
    samples: int = Field(128, ge=1)
    """Windows."""
    length: int | None = Field(None, ge=2)
    """Tokens per window; 2048, or the model's context where that is shorter."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Places the windows, or draws their tokens."""

    @model_validator(mode="before")
    @classmethod
    def _find_source(cls, data: Any) -> Any:
        """Put the source in the place of its name and options."""
        if not isinstance(data, dict) or isinstance(data.get("source"), TextSource):
            return data
        options = {key: value for key, value in data.items() if key not in (*AMOUNT, "dataset")}
        source = sources.calibrating(_dataset(data), options)
        return {"source": source, **{key: data[key] for key in AMOUNT if key in data}}

    @model_serializer
    def flat(self) -> dict[str, Any]:
        """The mapping of a recipe, with the options that this source has."""
        amount = {key: getattr(self, key) for key in AMOUNT}
        options = {key: getattr(self.source, key) for key in self.source.option_names()}
        return {"dataset": self.source.dataset, **amount, **options}


def with_defaults(asked: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A recipe's mapping over another, whose options that the source of the result lacks are left out.

    Raises:
        RequestError: there is no such source.
    """
    merged = {**defaults, **asked}
    known = (*AMOUNT, "dataset", *sources.kind(_dataset(merged)).option_names())
    return {key: value for key, value in merged.items() if key in known or key in asked}


def _dataset(data: dict[str, Any]) -> str:
    name = data.get("dataset", "builtin")
    if not isinstance(name, str):
        raise RequestError("calibration.dataset", f"a name, a path or a Hub id is needed (found {name!r})")
    return name
