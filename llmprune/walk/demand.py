"""What a run demands: the number of passes over the model, and what is kept in memory."""

from __future__ import annotations

from dataclasses import dataclass

from llmprune.methods.base import Propagation
from llmprune.tensors.statistics import Nothing, Statistic


@dataclass(frozen=True)
class Measuring:
    """What the measurements of an allocation take."""

    passes: int
    """Forward passes of the dense model, or of the model without some blocks."""

    tokens: int
    """Tokens of each pass."""

    held: int = 0
    """Tokens whose hidden states are held besides those of the calibration set; a token counts for each
    state of it."""

    trials: int = 0
    """Times that the whole model is pruned to choose a budget, each of which takes what pruning takes."""

    levels: int = 0
    """Times that every site is solved and kept on disk meanwhile."""


@dataclass(frozen=True)
class Demand:
    """The input of the plan, for pruning and for recovery alike."""

    needs: type[Statistic] = Nothing
    """The statistic to gather of every site's inputs."""

    propagation: Propagation = "layer"
    samples: int = 0
    """Calibration windows; 0 if no text is needed."""

    walks: bool = True
    """Whether windows pass through the blocks one by one, and their hidden states are held."""

    training_passes: int = 0
    """Forward passes over the calibration set to train the method."""

    drawing_passes: int = 0
    """Forward passes over the calibration set to draw its tokens."""

    generates_text: bool = False
    """Whether the whole model is loaded to generate the calibration text."""

    measuring: Measuring = Measuring(0, 0)
    """What the allocation takes, where it walks the model by itself."""

    held_tokens: int = 0
    """Tokens whose hidden states are held besides those of the calibration set."""

    follows_dense: bool = False
    """Whether the dense model's states pass through every block too, with its dense weights."""

    refits_layers: bool = False
    """Whether output layers are refitted, for which the Gram matrix of one is held."""

    holds_all: bool = False
    """Whether the statistics of all sites stay in memory from the allocation to the end of pruning."""
