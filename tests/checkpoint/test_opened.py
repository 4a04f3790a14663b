"""What of a checkpoint is held in memory is decided before it is read."""

from __future__ import annotations

import dataclasses

import torch

from llmprune.recipe import Recipe
from llmprune.run.asked import Run
from llmprune.run.job import checkpoint_job
from tests import tiny


def test_copies_fit_where_there_is_room_for_one_more(checkpoints: tiny.Checkpoints) -> None:
    opened = checkpoint_job(str(checkpoints("llama")), Recipe.parse({"method": "magnitude"}), Run()).model
    size = opened.anatomy.parameters * torch.float32.itemsize
    resources = dataclasses.replace(opened.resources, available=7 * size + 1)
    opened = dataclasses.replace(opened, resources=resources)
    assert opened.fits_whole(6, torch.float32)
    assert not opened.fits_whole(7, torch.float32)
    assert opened.fits_whole(7, torch.bfloat16)
