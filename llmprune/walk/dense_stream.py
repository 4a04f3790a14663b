"""The dense model's own hidden states, taken through the same resident blocks beside those of the pruned one.

The weights that a block had before it was pruned are put back while the dense states pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.walk.stage import Stage

Parameters = dict[tuple[nn.Module, str], nn.Parameter]


class DenseStream:
    """Follows a walk; holds the dense weights of one block, and one state for each token."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._hidden: list[Tensor] | None = None  # both streams start with the embeddings
        self._stage: Stage | None = None
        self._dense: Parameters = {}

    def enter(self, stage: Stage) -> None:
        """Keep the weights of a resident block, before it is pruned."""
        hidden = stage.hidden if self._hidden is None else self._hidden
        self._stage = Stage(self._anatomy, stage.index, hidden, stage.calls)
        self._dense = _parameters_of(stage)

    def inputs_of(self, site: Site) -> Iterator[Tensor]:
        """Yield the inputs of a site of that block in the dense model, batch by batch."""
        assert self._stage is not None
        for batch in range(len(self._stage.hidden)):
            with self._restored() as stage:
                x = stage.input_of(site, batch)
            yield x

    def leave(self) -> None:
        """Take the dense states through the block, and let go of its dense weights."""
        with self._restored() as stage:
            self._hidden = stage.run()
        self._stage, self._dense = None, {}

    @contextmanager
    def _restored(self) -> Iterator[Stage]:
        """Put the dense weights in place while the context is open."""
        assert self._stage is not None
        pruned = _parameters_of(self._stage)
        _put(self._dense)
        try:
            yield self._stage
        finally:
            _put(pruned)


def _parameters_of(stage: Stage) -> Parameters:
    """The weights that the stage's sites have now; single weights are pruned without a change of biases."""
    return {(site.layer, site.leaf): site.layer.get_parameter(site.leaf) for site in stage.sites}


def _put(parameters: Parameters) -> None:
    for (layer, leaf), parameter in parameters.items():
        setattr(layer, leaf, parameter)
