"""What is to be reached, as a user says it: `6GiB`, `0.8x` of the dense bytes, or `1.3x-decode`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from accelerate.utils import convert_file_size_to_int

from llmprune.errors import RequestError

SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]i?B)", re.IGNORECASE)
GGUF_ENGINE = "llama.cpp"
ENGINES = ("transformers", GGUF_ENGINE)
TIMES = re.compile(r"(\d*\.?\d+)x(-decode)?")
NEAR = {"bytes": 0.02, "decode": 0.1}  # by which a result may miss what was asked, as a share of it


@dataclass(frozen=True)
class Target:
    """A size of the weight files, or a speed over the dense model's."""

    said: str
    of: Literal["bytes", "decode"]
    bytes: int = 0
    """That were asked; 0 where a share was."""

    times: float = 0.0
    """The share of the dense bytes, or the ratio of decode speeds; 0 where bytes were asked."""

    engine: str = ENGINES[0]
    """In which speed is measured."""

    @property
    def near(self) -> float:
        """By which a result may miss it, as a share of it."""
        return NEAR[self.of]

    def misses(self, taken: float, goal: float) -> float:
        """By which share of what was asked a result misses it: in bytes, or in speed."""
        return abs((taken / goal if self.of == "bytes" else goal / taken) - 1)

    def words(self, taken: float, dense: float) -> str:
        """What a model reaches, as it would be asked, given what it and the dense one take."""
        return f"{taken / dense:.3g}x" if self.of == "bytes" else f"{dense / taken:.3g}x-decode"

    def goal(self, dense: float) -> float:
        """What the pruned model should take, given what the dense one takes: bytes, or seconds for a token.

        Raises:
            RequestError: the dense model is there already.
        """
        wanted = self.bytes or (dense * self.times if self.of == "bytes" else dense / self.times)
        if wanted > (1 - NEAR["bytes"]) * dense:
            has = f"has {dense:,.0f} bytes" if self.of == "bytes" else "is as fast"
            way_out = "less" if self.of == "bytes" else "more"
            raise RequestError(
                "target", f"{self.said} was asked, and the model {has} already; ask for {way_out}"
            )
        return wanted


def parse(text: str, engine: str | None = None) -> Target:
    """The target that a word names, in an engine if that matters.

    Raises:
        RequestError: it is none; the sentence says what one is.
    """
    if engine is not None and not text.endswith("-decode"):
        raise RequestError("engine", f"{text} is a size, which no engine changes; leave it out")
    if engine not in (None, *ENGINES):
        raise RequestError("engine", f"{engine!r} is not known; allowed: {', '.join(ENGINES)}")
    if SIZE.fullmatch(text) and (size := convert_file_size_to_int(text.upper().replace("IB", "iB"))) > 0:
        return Target(text, "bytes", bytes=int(size))
    if (found := TIMES.fullmatch(text)) and float(found[1]) > 0:
        of: Literal["bytes", "decode"] = "decode" if found[2] else "bytes"
        return Target(text, of, times=float(found[1]), engine=engine or ENGINES[0])
    fitted = "; what layers are fitted to is --set target=dense" if text in ("dense", "pruned") else ""
    raise RequestError(
        "target",
        f"{text!r} is no size (6GiB), no share of the dense bytes (0.8x) and no speed (1.3x-decode){fitted}",
    )
