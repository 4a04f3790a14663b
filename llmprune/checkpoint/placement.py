"""A device map, as accelerate has it: which modules wait on which accelerator, in host memory or on disk."""

from __future__ import annotations

import difflib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from accelerate import infer_auto_device_map
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune.checkpoint import devices
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError

DISK = "disk"
SPARE = 0.8  # share of a memory that `auto` may fill
Asked = str | dict[str, str | int]
"""`auto`, a file, or what is in such a file."""

Places = dict[str, str]
"""A device or `disk`, by the path of a module; no module lies in another."""


def settled(asked: Asked, model: PreTrainedModel, stored: torch.dtype, room: Mapping[str, int]) -> Places:
    """Where every module of a model waits.

    Args:
        asked: by the user.
        model: without weights.
        stored: dtype of its checkpoint.
        room: bytes that `auto` may fill, by device; else most of what is free there.

    Raises:
        RequestError: the file is no device map, or names a module or device that is not there.
    """
    if asked == "auto":
        return _spread(model, stored, room)
    return _known(_read(asked) if isinstance(asked, str) else asked, model)


def _spread(model: PreTrainedModel, stored: torch.dtype, room: Mapping[str, int]) -> Places:
    """Fill the accelerators, then host memory; the rest is on disk."""
    cpu, *accelerators = devices.found()
    most = {
        "cpu" if device == cpu else device.index: max(0, room.get(str(device), roomy(devices.free(device))))
        for device in (*accelerators, cpu)
    }
    whole = list(getattr(model, "_no_split_modules", None) or ())
    return _known(infer_auto_device_map(model, most, whole, dtype=stored), model)


def roomy(free: int) -> int:
    """How much of a free memory `auto` may fill."""
    return int(SPARE * free)


def _read(asked: str) -> dict[str, str | int]:
    """A map in a JSON or YAML file."""
    try:
        found = yaml.safe_load(Path(asked).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            "device_map", f"{asked} cannot be read ({error.strerror}); give auto, or a file of module: device"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError("device_map", f"{asked} is neither JSON nor YAML; write module: device") from error
    if not isinstance(found, dict) or not all(isinstance(path, str) for path in found):
        raise RequestError("device_map", f"{asked} maps no modules to devices; write lines of module: device")
    return found


def _known(asked: Mapping[str, str | int], model: PreTrainedModel) -> Places:
    """A map of which all is there.

    Raises:
        RequestError: a module or a device is not, or a weight has no place or two.
    """
    modules = dict(model.named_modules())
    for path in asked:
        if path not in modules:
            near = difflib.get_close_matches(path, modules, 1, 0) or [""]
            raise RequestError(
                "device_map", f"{path} was named, and the model has no such module; did you mean {near[0]}?"
            )
        if above := [other for other in asked if other != path and _holds(other, path)]:
            raise RequestError(
                "device_map", f"{path} was named, and {above[0] or 'the whole model'} too, which holds it"
            )
    places = {
        path: DISK if place == DISK else devices.numbered(devices.named(place, "device_map"))
        for path, place in asked.items()
    }
    for name in model.state_dict():  # a head that is tied as well: accelerate asks for its place
        if place_of(name, places) is None:
            raise RequestError(
                "device_map", f"{name} is in none of the modules that were named; name one that holds it"
            )
    return places


def place_of(name: str, places: Places) -> str | None:
    """Where a weight of this name waits."""
    return next((place for path, place in places.items() if _holds(path, name)), None)


def _holds(path: str, name: str) -> bool:
    """Whether a module holds another, or a weight, of this name."""
    return not path or name.startswith(f"{path}.")


def dispatched(source: Source, dtype: torch.dtype, places: Places) -> PreTrainedModel:
    """The whole model as accelerate runs it: what waits elsewhere is loaded for each forward pass.

    Raises:
        RequestError: the first weights are not where they compute.
    """
    source.fetch()
    spill = tempfile.mkdtemp(prefix="llmprune-offload-")  # of what no file holds as the model has it
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source.folder,
        dtype=dtype,
        device_map=places,
        offload_folder=spill,
        trust_remote_code=source.trust_remote_code,
    )
    weakref.finalize(model, shutil.rmtree, spill, ignore_errors=True)
    name, first = next(model.named_parameters())
    if first.is_meta:  # and nothing says where what is read should go
        raise RequestError("device_map", f"{name} waits elsewhere; put it on the device that computes")
    return model.eval()
