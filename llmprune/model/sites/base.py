"""What a kind of site is: where such sites are in a model, and how the pruned model is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llmprune import plugins
from llmprune.model.anatomy import Anatomy
from llmprune.model.shapes import Layout, Shapes
from llmprune.model.site import Site
from llmprune.model.widths import Allowed
from llmprune.patterns.base import Pattern
from llmprune.vocabulary.choice import Kept

Budget = dict[str, float]  # the share that goes at every site, by the site's name


@dataclass(frozen=True)
class Asked:
    """What a recipe asks of the sizes of the pruned model."""

    sparsity: float = 0.0
    layout: Layout | None = None
    biased: bool = False
    """Whether the repair gives the sites a bias."""
    kept: Kept | None = None
    """The tokens that stay, where rows of the vocabulary go."""


@dataclass(frozen=True)
class Sites:
    """Override `find`, and `shapes` where the model's sizes change.

    Args:
        pattern: the pattern that names this kind; its options say which of the sites.
    """

    pattern: Pattern

    whole: ClassVar[bool] = False
    """Whether something goes as a whole, so that sizes change: a layout says how that is written, and a block
    that was written is pruned again on resume rather than read back."""

    shares: ClassVar[str] = "weights"
    """What an allocator shares out: single `weights`, `units`, `blocks`, or `rows` of the vocabulary."""

    sample: ClassVar[int] = 512
    """Tokens of a site's inputs that are kept to report its output error."""

    def find(self, anatomy: Anatomy) -> Iterable[Site]:
        """The sites of a model, block by block, in the order of its modules."""
        raise NotImplementedError

    def require_coverage(self, anatomy: Anatomy) -> None:
        """Refuse a model of which the sites miss too much.

        Raises:
            RequestError: it names what is missed.
        """

    def default_layout(self, *, uneven: bool) -> Layout | None:
        """How sizes are written unless asked otherwise; None where they do not change.

        Args:
            uneven: whether blocks may end with different sizes.
        """
        return None

    def allowed(self, anatomy: Anatomy, asked: Asked) -> Allowed:
        """How many units of every site may stay; empty where any share may go.

        Raises:
            RequestError: the model cannot be cut, or not be written, as asked.
        """
        return {}

    def sparsity(self, anatomy: Anatomy, asked: Asked) -> float:
        """The share that goes: as asked, unless the pattern lists what goes."""
        return asked.sparsity

    def shapes(self, anatomy: Anatomy, asked: Asked, budget: Budget) -> Shapes:
        """The sizes of the pruned model."""
        return Shapes(anatomy)


def sites_of(pattern: Pattern) -> Sites:
    """The kind of site that a pattern prunes.

    Raises:
        ValueError: the pattern names none.
    """
    return plugins.find(__package__, pattern.prunes, Sites)(pattern)
