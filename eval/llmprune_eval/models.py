"""The models that are measured: folders and Hub ids in transformers, .gguf files in llama.cpp where it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmprune.checkpoint import source
from llmprune.errors import RequestError
from llmprune.export.vocabulary import knows, tokenizer_of
from llmprune.loading import load
from llmprune_eval import engine
from llmprune_eval.served import Endpoint, Served

CONTEXT = 2048  # of a model that does not say


@dataclass(frozen=True)
class Named:
    """A model that is there, its weights not read."""

    name: str
    tokenizer: Any
    config: Any
    file: Path | None = None
    """Of the model, where llama.cpp runs it."""

    url: str | None = None
    """Of the server that answers for it."""

    def opened(self, length: int, where: dict[str, Any]) -> Any:
        """The model, ready to read so many tokens.

        Args:
            length: of the windows.
            where: arguments of `llmprune.load`.
        """
        if self.url is not None:
            context = getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)
            return Endpoint(self.url, context or CONTEXT)
        if self.file is not None:
            return engine.Engine(self.file, length)
        return load(self.name, kernels="none", **where)[0]


def find(name: str | Served, *, trust: bool, scored: bool = False) -> Named:
    """Look a model up.

    Args:
        name: a folder, a .gguf file or a Hub id; or one of these and where it is served.
        trust: whether code that comes with it may run.
        scored: whether tasks will be scored, for which transformers runs a .gguf file as well.

    Raises:
        RequestError: there is no such model, or it has no tokenizer.
    """
    if isinstance(name, Served):
        return replace(find(name.name, trust=trust, scored=scored), url=name.url)
    if (file := engine_file(name)) and not scored:
        return Named(name, tokenizer_of(file), engine.config_of(file), file)
    found = source.find(name, trust_remote_code=trust)
    tokenizer = source.tokenizer(found.folder, trust_remote_code=found.trust_remote_code)
    return Named(name, tokenizer, found.config)


def require_device(names: Iterable[str | Served], where: dict[str, Any]) -> None:
    """Refuse another device than the CPU, and a device map, for a file that llama.cpp runs.

    Args:
        names: of the models.
        where: arguments of `llmprune.load`.

    Raises:
        RequestError: it names the file.
    """
    device, places = where.get("device", "auto"), where.get("device_map")
    asked = device if device not in ("auto", "cpu") else places and "a device map"
    for name in names if asked else ():
        if not isinstance(name, Served) and engine_file(name):
            raise RequestError(
                "device", f"{asked} was asked, and llama.cpp runs {name} on the CPU here; leave it out"
            )


def engine_file(name: str) -> Path | None:
    """The file of a model that llama.cpp runs; None for what transformers runs.

    Raises:
        RequestError: it is no whole GGUF file.
    """
    file = Path(name)
    runs = file.suffix == ".gguf" and file.is_file() and engine.is_there() and knows(file)
    return file if runs else None
