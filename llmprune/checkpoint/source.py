"""Where a checkpoint comes from: a local folder, the Hub, or a .gguf file."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub import errors as hub_errors
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llmprune.checkpoint import gguf, packed, shards
from llmprune.checkpoint.offline import UNREACHABLE, by_storage
from llmprune.checkpoint.shards import Stored
from llmprune.errors import JobError, RequestError, first_line, one_line
from llmprune.paths import existing
from llmprune.progress import track

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.ot",
    "*.npz",
)
COUNTED, MOST = re.compile(r"(_|^)layers?$"), 4096  # what a config counts of layers; the most that are built


@dataclass(frozen=True)
class Source:
    """A checkpoint whose configuration is at hand; its weights are fetched when they are first asked for."""

    name: str
    folder: Path
    revision: str | None = None
    trust_remote_code: bool = False

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.json as it stands."""
        file = self.folder / "config.json"
        try:
            settings: dict[str, Any] = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise RequestError("model", f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(settings, dict):
            raise RequestError("model", f"{file} is not a mapping")
        _require_countable(settings, file)
        return settings

    @cached_property
    def config(self) -> Any:
        """The configuration as transformers understands it."""
        _ = self.settings  # refuses what transformers would count to without end
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        except Exception as error:
            raise RequestError(
                "model", f"transformers cannot read the config of {self.name}: {one_line(error)}"
            ) from error

    @property
    def packed(self) -> bool:
        """Whether its weights are quantised, and unpacked as they are read."""
        return packed.format_of(self.settings) is not None

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Every tensor by its key; a Hub checkpoint's weights are downloaded first."""
        if self.revision:
            _download(self.name, self.revision, allow_patterns=self._weight_files)
        found = shards.read_headers(self.folder, packed=self.packed)
        packed.require_scaled(self.name, found, self.settings)
        return found

    def fetch(self) -> None:
        """Have the weights at hand, and refuse those that cannot be read."""
        _ = self.tensors

    @cached_property
    def size(self) -> tuple[int, torch.dtype]:
        """Bytes of all weights, and the dtype of most of them; the Hub tells without a download."""
        if self.revision and not all((self.folder / file).exists() for file in self._weight_files):
            sizes = _sizes_on_hub(self.name, self.revision)
        else:
            sizes = Counter()
            for stored in self.tensors.values():
                sizes[stored.type] += stored.bytes
        if self.packed:  # transformers unpacks them into this dtype
            return sum(sizes.values()), torch.bfloat16
        return sum(sizes.values()), shards.DTYPES.get(max(sizes, key=lambda t: sizes[t]), torch.float32)

    @property
    def _weight_files(self) -> list[str]:
        if self.revision and not (self.folder / shards.INDEX).exists():
            return [shards.SINGLE]
        return shards.shard_files(self.folder)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of every weight file, by name."""
        files = sorted({stored.file for stored in self.tensors.values()})
        return {file.name: shards.sha256(file) for file in track(files, "hashing the weights")}

    def copied_files(self) -> list[Path]:
        """What a pruned checkpoint takes over as it is: tokenizer, generation config, code, licence."""
        ours = ("config.json", "README.md", shards.INDEX)
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.is_file()
            and path.name not in ours
            and not path.name.startswith(".")
            and not any(path.match(pattern) for pattern in WEIGHTS)
            and not path.name.endswith(".index.json")
        ]


def _require_countable(settings: Any, file: Path) -> None:
    """Refuse a config, or a part of one, of more layers than any model has: each would be built.

    Raises:
        RequestError: it names the entry.
    """
    for key, value in settings.items():
        if isinstance(value, dict):
            _require_countable(value, file)
        elif isinstance(value, int) and value > MOST and COUNTED.search(key):
            raise RequestError("model", f"{file} gives {key} as {value}, and no model has so many; mend it")


def tokenizer(where: str | Path, *, trust_remote_code: bool, way_out: str = "add its files there") -> Any:
    """The tokenizer of a folder, or of a model that transformers knows by its name.

    Args:
        where: the folder, or the name.
        trust_remote_code: as in transformers.
        way_out: what to do where there is none.

    Raises:
        RequestError: it has none.
    """
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise RequestError("tokenizer", f"none could be loaded from {str(where)!r}; {way_out}") from error


def find(name: str, *, trust_remote_code: bool = False) -> Source:
    """The checkpoint that the user named, checked as far as that needs no weights.

    Args:
        name: a folder, a .gguf file, or a Hub id `org/name[@revision]`.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        RequestError: there is no such checkpoint, or llmprune does not read its kind.
    """
    path = existing(name)
    if path is not None and path.is_dir():
        source = Source(str(path), path, trust_remote_code=trust_remote_code)
        if not (path / "config.json").is_file():
            raise RequestError("model", f"{path} has no config.json, so it is not a transformers checkpoint")
        shards.shard_files(path)
    elif path is not None:
        if path.suffix != ".gguf":
            raise RequestError("model", f"{path} is a file; give a folder, a .gguf file or a Hub id")
        source = Source(str(path), gguf.dequantised(path.resolve()))
    elif found := HUB_ID.fullmatch(name):
        source = _on_hub(found["id"], found["revision"], trust_remote_code)
    else:
        raise RequestError("model", f"{name!r} is no folder, no .gguf file and no Hub id like org/name")
    _require_supported(source)
    return source


def _on_hub(repo: str, revision: str | None, trust_remote_code: bool) -> Source:
    folder = _download(repo, revision, ignore_patterns=[*WEIGHTS, "*/*"])
    if not (folder / "config.json").is_file():
        raise RequestError("model", f"{repo} has no config.json, so it is not a transformers checkpoint")
    names = {path.name for path in folder.iterdir()}
    if not names & {shards.INDEX, shards.SINGLE}:
        files = _listing(repo, folder.name)
        if files is not None and not files & {shards.INDEX, shards.SINGLE}:
            raise RequestError(
                "model",
                f"{repo} holds no safetensors weights ({', '.join(sorted(files)[:5])}); convert it with "
                "https://huggingface.co/spaces/safetensors/convert, or name a revision that has them",
            )
    return Source(repo, folder, folder.name, trust_remote_code)


def _listing(repo: str, revision: str) -> set[str] | None:
    """The files of a repository, or None when the Hub is out of reach."""
    try:
        return set(HfApi().list_repo_files(repo, revision=revision))
    except UNREACHABLE:
        return None


def _download(repo: str, revision: str | None, **patterns: Any) -> Path:
    """A snapshot of the repository; the cached one when the Hub is out of reach."""
    where = f"{repo}@{revision}" if revision else repo
    try:
        return Path(snapshot_download(repo, revision=revision, **patterns))
    except hub_errors.HFValidationError as error:
        raise RequestError("model", f"{repo!r} is no folder, and no valid Hub id: {error}") from error
    except (*UNREACHABLE, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not by_storage(error):
            raise
        raise RequestError(
            "model",
            f"{where} is no local folder, not in the Hub's cache, and could not be fetched: "
            f"{first_line(error)}",
        ) from error


def _sizes_on_hub(repo: str, revision: str) -> Counter[str]:
    """Bytes of every dtype in a repository's safetensors files, from their headers."""
    sizes: Counter[str] = Counter()
    try:
        files = HfApi().get_safetensors_metadata(repo, revision=revision).files_metadata
    except UNREACHABLE as error:
        raise JobError(f"the weights of {repo} could not be looked up: {first_line(error)}") from error
    for file in files.values():
        for tensor in file.tensors.values():
            sizes[tensor.dtype] += tensor.data_offsets[1] - tensor.data_offsets[0]
    return sizes


def _require_supported(source: Source) -> None:
    """Refuse what llmprune cannot prune, by the configuration alone."""
    settings = source.settings
    packed.require_readable(source.name, settings)
    family = settings.get("model_type")
    known = isinstance(family, str) and family in CONFIG_MAPPING
    if not source.trust_remote_code and not known:
        why = "comes with its own code" if settings.get("auto_map") else "is unknown to this transformers"
        raise RequestError(
            "model",
            f"{source.name} ({family!r}) {why}; add --trust-remote-code if you trust its authors, "
            "or update transformers",
        )
    remote = "AutoModelForCausalLM" in str(settings.get("auto_map")) and source.trust_remote_code
    if not remote and type(source.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RequestError("model", f"{source.name} ({family!r}) is not a causal language model")
