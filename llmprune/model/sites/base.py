"""What a kind of site is: where such sites are in a model, and how the pruned model is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llmprune import plugins
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.shapes import Layout, Shapes
from llmprune.model.site import Site
from llmprune.model.widths import Allowed, Budget
from llmprune.patterns.base import Pattern
from llmprune.vocabulary.choice import Kept


@dataclass(frozen=True)
class SizeRequest:
    """The parts of a recipe that decide the sizes of the pruned model."""

    sparsity: float = 0.0
    layout: Layout | None = None
    adds_bias: bool = False
    """Whether the repair gives the sites a bias."""
    refits_seams: bool = False
    """Whether the repair refits the blocks before removed spans."""

    kept: Kept | None = None
    """The tokens that stay, where rows of the vocabulary go."""


@dataclass(frozen=True)
class Sites:
    """Override `find`, and `shapes` where the model's sizes change.

    Args:
        pattern: the pattern that names this kind; its options may select some of the sites.
    """

    pattern: Pattern

    changes_sizes: ClassVar[bool] = False
    """Whether layers or blocks get smaller. A layout then says how sizes are stored, and a resumed run prunes
    a finished block again, because its dense sizes are not in the file."""

    shares: ClassVar[str] = "weights"
    """What an allocator distributes over the sites: `weights`, whole `units`, `blocks`, or `rows`."""

    sample_tokens: ClassVar[int] = 64
    """Tokens of a site's inputs to keep, from which its output error is computed: few, since it takes as long
    as pruning by Wanda, and those of all blocks can be in memory at once."""

    def find(self, anatomy: Anatomy) -> Iterable[Site]:
        """Find the sites of a model, block by block, in the order of its modules."""
        raise NotImplementedError

    def require_coverage(self, anatomy: Anatomy) -> None:
        """Refuse a model if too few of its weights belong to sites.

        Raises:
            RequestError: too few do; the message names weights outside the sites.
        """

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts that can store the sizes; empty if there is nothing to choose."""
        return ()

    def default_layout(self, *, uneven: bool) -> Layout | None:
        """The layout if the recipe names none: the first, or None if no size changes.

        Args:
            uneven: whether blocks may get different sizes.
        """
        return next(iter(self.layouts), None)

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """How many units of every site may stay; empty if any share can be removed.

        Raises:
            RequestError: the model cannot be cut or stored as asked.
        """
        return {}

    def sparsity(self, anatomy: Anatomy, asked: SizeRequest) -> float:
        """The share that goes: as asked, unless the pattern lists what goes."""
        return asked.sparsity

    def going(self, anatomy: Anatomy, asked: SizeRequest) -> set[int]:
        """Whole blocks that will go: those listed, or as many."""
        return set()

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> Shapes:
        """The sizes of the pruned model."""
        return Shapes(anatomy)


def sites_of(pattern: Pattern) -> Sites:
    """The kind of site that a pattern prunes.

    Raises:
        RequestError: there is no such kind.
    """
    try:
        return plugins.find(__package__, pattern.prunes, Sites)(pattern)
    except ValueError as error:
        raise RequestError("pattern", str(error)) from error
