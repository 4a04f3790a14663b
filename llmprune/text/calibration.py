"""The `calibration` of a recipe: a text source with its options, and how many windows to take from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from llmprune import plugins
from llmprune.errors import RequestError
from llmprune.plugins import Options
from llmprune.text import bos as beginning
from llmprune.text import sources
from llmprune.text.bos import Bos
from llmprune.text.sources.base import Access, Amount, TextSource
from llmprune.text.windows import Windows

AMOUNT = ("samples", "length", "seed", "bos")


class Calibration(BaseModel):
    """Which text to calibrate on, and how much of it.

    In a recipe it is one mapping: `dataset` (the name of a file of `llmprune/text/sources/`, a path or a Hub
    id; `builtin` by default), the options of that source, and the fields below.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: InstanceOf[TextSource]
    """Built from `dataset` and its options."""
    samples: int = Field(128, ge=1)
    """Number of windows."""
    length: int | None = Field(None, ge=2)
    """Tokens per window; by default 2048, or the model's context length if that is shorter."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the windows' positions, or of their tokens where a source draws tokens."""
    bos: Bos = "auto"
    """Whether windows begin with BOS, in the place of a token of text; `auto` as the tokenizer does."""

    @field_validator("bos", mode="before")
    @classmethod
    def _parse_bos(cls, value: object) -> Bos:
        return beginning.parse(value, "calibration.bos")

    @model_validator(mode="before")
    @classmethod
    def _build_source(cls, data: object) -> object:
        """Replace the source's name and options by the source itself."""
        if not isinstance(data, dict) or isinstance(data.get("source"), TextSource):
            return data
        options = {key: value for key, value in data.items() if key not in (*AMOUNT, "dataset")}
        source = sources.for_calibration(_dataset(data), options)
        own = {} if source.own_samples is None else {"samples": source.own_samples}
        # Absent fields are not filled in here, so that pydantic applies and validates its defaults.
        return {"source": source, **own, **{key: data[key] for key in AMOUNT if key in data}}

    @model_serializer
    def flat(self) -> dict[str, Any]:
        """Return the mapping of a recipe, with only the options that this source has."""
        amount = {key: getattr(self, key) for key in AMOUNT}
        options = {key: getattr(self.source, key) for key in self.source.option_names()}
        return {"dataset": self.source.dataset, **amount, **options}

    def windows(self, length: int, access: Access) -> Windows:
        """Return windows of `length` tokens, BOS included.

        Raises:
            RequestError: the text does not exist or is too short, or there is no BOS, or no room for text.
            JobError: the text is out of reach, or the model does not fit.
        """
        bos = beginning.tokens(access.tokenizer(), self.bos, "calibration.bos") if self.bos else ()
        if len(bos) >= length:
            raise RequestError(
                "calibration.length", f"{length} was asked, and BOS takes {len(bos)}; give a larger one"
            )
        return self.source.windows(Amount(self.samples, length - len(bos), self.seed, bos), access).behind(
            bos
        )


def calibration_of(value: Options) -> Calibration:
    """The text that a mapping asks for.

    Raises:
        RequestError: it names the first field that is wrong.
    """
    try:
        return Calibration.model_validate(value)
    except ValidationError as error:
        raise plugins.sentence(error, "calibration") from error


def with_defaults(asked: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, Any]:
    """Merge a recipe's mapping over default options, without the defaults that its source does not have.

    Raises:
        RequestError: no such text source exists.
    """
    merged = {**defaults, **asked}
    # A method's defaults are for its own source; the user may have chosen another one.
    # An unknown option that the user asked for stays, so that it is refused later.
    known = (*AMOUNT, "dataset", *sources.source_class(_dataset(merged)).option_names())
    return {key: value for key, value in merged.items() if key in known or key in asked}


def as_now(recorded: Mapping[str, object]) -> dict[str, Any]:
    """Return a recorded mapping with the field that earlier versions did not write."""
    return {"bos": "auto", **recorded}


def _dataset(data: Mapping[str, object]) -> str:
    name = data.get("dataset", "builtin")
    if not isinstance(name, str):
        raise RequestError("calibration.dataset", f"a name, a path or a Hub id is needed (found {name!r})")
    return name
