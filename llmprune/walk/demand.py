"""What a run demands: how often it walks the model, and what it must hold meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from llmprune.methods.base import Propagation
from llmprune.tensors.statistics import Nothing, Statistic


@dataclass(frozen=True)
class Demand:
    """What the plan is made from, whatever the run is for."""

    needs: type[Statistic] = Nothing
    """What is gathered of every site's inputs."""

    propagation: Propagation = "layer"
    samples: int = 0
    """Calibration windows; 0 if no text is needed."""

    training_passes: int = 0
    """Forward passes over the calibration set to train the method."""

    drawing_passes: int = 0
    """Forward passes over the calibration set to draw its tokens."""

    generates_text: bool = False
    """Whether the whole model is loaded to generate the calibration text."""

    allocation_pass: bool = False
    """Whether the allocation takes a forward pass of its own."""

    refits_layers: bool = False
    """Whether output layers are refitted, for which the Gram matrix of one is held."""

    holds_all: bool = False
    """Whether what is gathered of all sites is held at a time, from the allocation to pruning."""
