"""config.json of a pruned model, and the files beside its weights: tokenizer, generation config, code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmprune import plugins
from llmprune.checkpoint import packed, versions
from llmprune.checkpoint.draft import Draft
from llmprune.model import mlx_file, modelling_file, mtp
from llmprune.model.anatomy import Anatomy
from llmprune.model.depth import kept_blocks
from llmprune.model.shapes import Shapes, from_earlier_pruning
from llmprune.run import learned
from llmprune.run.job import Job

EARLIER = (
    f"{modelling_file.MODULE}.py",
    mlx_file.FILE,
    f"{Path(learned.FILE).stem}.json",
)  # describe an earlier pruning


def mark(todo: Job, shapes: Shapes) -> dict[str, Any]:
    """The `llmprune` key of a pruned model's config."""
    kept = kept_blocks(todo.model.anatomy)
    return {
        "version": versions.installed()["llmprune"],
        "method": plugins.name_of(todo.recipe.method),
        "pattern": str(todo.recipe.pattern),
        "sparsity": todo.recipe.sparsity,
        "recipe": todo.recipe.hash,
        **({"blocks": kept} if kept else {}),
        **shapes.mark(),
    }


def write(
    todo: Job,
    draft: Draft,
    tokenizer: PreTrainedTokenizerBase | None,
    shapes: Shapes,
    *,
    drops_heads: bool,
) -> None:
    """Write config.json with our key; copy the tokenizer and the generation config."""
    source, anatomy = todo.model.source, todo.model.anatomy
    if source:
        settings = dict(source.settings)
        changed = shapes.files(source.folder)
        for file in source.copied_files():
            if file.name not in (*EARLIER, *changed):
                draft.copy(file)
        for name, text in changed.items():
            if text is not None:
                draft.write_text(name, text)
    else:
        model = anatomy.model
        settings = json.loads(model.config.to_json_string())
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(draft.folder)
        todo.model.tokenizer(tokenizer).save_pretrained(draft.folder)
    if not shapes.copies:
        settings.pop(packed.SETTING, None)  # what was unpacked is written as ordinary weights
    if drops_heads:
        settings |= {name: 0 for name in mtp.COUNTS if settings.get(name)}
    settings["llmprune"] = said = mark(todo, shapes)
    settings = shapes.config(settings)
    own_code = said.get("layout") == "per_layer"
    _write_code(settings, draft, anatomy, own=own_code)
    _name_code(settings, anatomy, own=own_code)
    if said.keys() & {"layout", "blocks"}:
        _state_theta(settings)
    draft.write_text("config.json", json.dumps(settings, indent=2))


def _write_code(settings: dict[str, Any], draft: Draft, anatomy: Anatomy, *, own: bool) -> None:
    """Write the files that build blocks of different sizes, for transformers and for mlx-lm."""
    if settings.get(mlx_file.KEY) == mlx_file.FILE:
        settings.pop(mlx_file.KEY)  # of an earlier pruning
    if not own:
        return
    draft.write_text(f"{modelling_file.MODULE}.py", modelling_file.code(anatomy))
    sizes: Any = settings["per_layer_config"]
    code = mlx_file.code(anatomy.family)
    if code and not any("skip" in block for block in sizes.values()):
        draft.write_text(mlx_file.FILE, code)
        settings[mlx_file.KEY] = mlx_file.FILE


def _state_theta(settings: dict[str, Any]) -> None:
    """Write rope's base where engines read it that know no `rope_parameters`."""
    theta = (settings.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        settings.setdefault("rope_theta", theta)


def _name_code(settings: dict[str, Any], anatomy: Anatomy, *, own: bool) -> None:
    """Say in a config which code builds the model: that of the modelling file, or transformers' alone."""
    if from_earlier_pruning(anatomy, "layout"):
        settings.pop("auto_map", None)
    if own:
        settings["auto_map"] = modelling_file.auto_map(anatomy)
    if stated := settings.get("architectures"):
        settings["architectures"] = modelling_file.architectures(stated, own=own)
