"""Open a checkpoint as a model whose blocks stay on disk until they are needed."""

from __future__ import annotations

import copy
import re

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llmprune.checkpoint import packed
from llmprune.checkpoint.source import Source
from llmprune.checkpoint.streamed import CheckpointStore
from llmprune.errors import JobError, RequestError, one_line
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.base import Sites


def blueprint(source: Source, kind: Sites) -> Anatomy:
    """The anatomy of a checkpoint's model, without weights.

    Raises:
        RequestError: it is not a decoder, or too few of its weights belong to sites.
    """
    anatomy = Anatomy(without_weights(source), kind)
    kind.require_coverage(anatomy)
    _require_apart(anatomy)
    return anatomy


def without_weights(source: Source) -> PreTrainedModel:
    """The model of a checkpoint, on the meta device.

    Raises:
        RequestError: transformers cannot build it.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                _unpacked(source.config), trust_remote_code=source.trust_remote_code, dtype=torch.float32
            )
    except Exception as error:
        raise RequestError("model", f"transformers cannot build {source.name}: {one_line(error)}") from error
    return model


def _require_apart(anatomy: Anatomy) -> None:
    """Refuse a model whose blocks share weights with one another.

    Raises:
        RequestError: it names the first that is shared.
    """
    if anatomy.shared_weight:
        raise RequestError(
            "model",
            f"blocks of this {anatomy.family!r} model share {anatomy.shared_weight}, which cannot be read "
            "block by block; choose another model",
        )


def _unpacked(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a config, of a model with ordinary weights."""
    made = copy.deepcopy(config)
    if hasattr(made, packed.SETTING):
        delattr(made, packed.SETTING)
    return made


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
    try:
        # Buffers that no file holds, such as the frequencies of rotary embeddings, are computed here.
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                _unpacked(source.config), trust_remote_code=source.trust_remote_code, dtype=dtype
            )
        anatomy.attach(model)
        store = CheckpointStore(anatomy, source.tensors, packed.quantizer_of(source.settings), device)
    except Exception as error:
        raise JobError(f"transformers cannot load {source.name}: {one_line(error)}") from error
    model.eval().requires_grad_(False)
    _require_complete(model, store.names)
    if misfit := store.misfit():
        raise JobError(
            f"the checkpoint's tensors do not have the size of {misfit}, which its config gives; "
            "download both again"
        )
    _keep_precise(model, dtype)
    store.load(_outside(anatomy))
    model.tie_weights()
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    return store


def _require_complete(model: PreTrainedModel, names: set[str]) -> None:
    """Refuse a checkpoint that lacks weights of the model.

    Raises:
        JobError: it names the first.
    """
    known = {*names, *getattr(model, "all_tied_weights_keys", {})}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    missing = sorted(
        name for name in model.state_dict() if name not in known and not any(p.search(name) for p in ignored)
    )
    if missing:
        raise JobError(
            f"{len(missing)} weights of the model are not in the checkpoint, {missing[0]} among them; "
            "download it again, since transformers would fill them with random numbers"
        )


def _keep_precise(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the parameters that transformers keeps in float32 that dtype."""
    plan = model._get_dtype_plan(dtype)
    for name, parameter in model.named_parameters() if plan else ():
        if any(re.search(rf"(^|\.){pattern}(\.|$)", name) for pattern in plan):
            parameter.data = parameter.data.float()


def _outside(anatomy: Anatomy) -> dict[str, nn.Module]:
    """The modules around the blocks, by their paths; not the head, unless it is tied."""
    tied = getattr(anatomy.model, "all_tied_weights_keys", {})
    # The head can be as large as several blocks, and only logits need it.
    head = None if tied else anatomy.model.get_output_embeddings()
    inside = f"{anatomy.prefix}."
    named = anatomy.model.named_modules()
    return {
        name: module for name, module in named if module is not head and not f"{name}.".startswith(inside)
    }
