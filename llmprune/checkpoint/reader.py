"""Open a checkpoint as a model whose blocks stay on disk until they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune.checkpoint.source import Source
from llmprune.checkpoint.store import CheckpointStore
from llmprune.errors import JobError, RequestError, one_line
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.base import Sites


def blueprint(source: Source, kind: Sites) -> Anatomy:
    """The anatomy of a checkpoint's model, without weights.

    Raises:
        RequestError: it is not a decoder, or too few of its weights belong to sites.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                source.config, trust_remote_code=source.trust_remote_code, dtype=torch.float32
            )
    except Exception as error:
        raise RequestError("model", f"transformers cannot build {source.name}: {one_line(error)}") from error
    anatomy = Anatomy(model, kind)
    kind.require_coverage(anatomy)
    _require_same_names(source, anatomy)
    return anatomy


def _require_same_names(source: Source, anatomy: Anatomy) -> None:
    """Refuse a checkpoint of fused experts that stores each expert by itself.

    Raises:
        RequestError: it names the first parameter that is not in the files.
    """
    fused = [name for name, parameter in anatomy.blocks[0].named_parameters() if parameter.ndim > 2]
    block = f".{anatomy.prefix.rpartition('.')[2]}.0"
    for name in fused:  # the files are only looked at where there are some
        if not any(f".{key}".endswith(f"{block}.{name}") for key in source.tensors):
            raise RequestError(
                "model",
                f"{source.name} stores the experts of {name} one by one, and these cannot be read block by "
                "block yet; choose another model",
            )


def open_streamed(
    source: Source, anatomy: Anatomy, dtype: torch.dtype, device: torch.device
) -> CheckpointStore:
    """Load all but the blocks of a model onto `device`; the blocks stay in the checkpoint's files.

    Args:
        source: the checkpoint.
        anatomy: its blueprint; the loaded model is attached to it.
        dtype: of the computation; the files do not change.
        device: where the blocks will compute.

    Raises:
        JobError: the files do not hold the weights that the model needs.
    """
    device_map = _device_map(anatomy, device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=dtype,
                device_map=device_map,
                trust_remote_code=source.trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:
        raise JobError(f"transformers cannot load {source.name}: {str(error).strip()}") from error
    _require_complete(model, info["missing_keys"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    anatomy.attach(model)
    return CheckpointStore(anatomy, source.tensors)


def _require_complete(model: PreTrainedModel, missing_keys: Iterable[str]) -> None:
    missing = sorted(set(missing_keys) - set(getattr(model, "all_tied_weights_keys", {})))
    if missing:
        raise JobError(
            f"{len(missing)} weights of the model are not in the checkpoint, {missing[0]} among them; "
            "download it again, since transformers would fill them with random numbers"
        )


def _device_map(anatomy: Anatomy, device: torch.device) -> dict[str, str]:
    """Keep the blocks on disk, and the head unless it is tied; load the rest onto `device`."""
    placed: dict[str, str] = {}
    tied = getattr(anatomy.model, "all_tied_weights_keys", {})
    # The head can be as large as several blocks, and only the logits of the probe need it.
    head = None if tied else anatomy.model.get_output_embeddings()

    def place(module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if full == anatomy.prefix or child is head:
                placed[full] = "disk"
            elif anatomy.prefix.startswith(full + "."):
                place(child, full)
            else:
                placed[full] = str(device)
        for own, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            placed[f"{name}.{own}" if name else own] = str(device)

    place(anatomy.model, "")
    return placed
