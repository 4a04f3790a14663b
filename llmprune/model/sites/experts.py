"""Whole experts of the blocks of a mixture: any family whose experts transformers' own kernels compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.errors import RequestError
from llmprune.model import rebuilt, uneven_experts
from llmprune.model.anatomy import Anatomy
from llmprune.model.experts import chosen, count, experts_of
from llmprune.model.fewer_experts import FewerExperts
from llmprune.model.resized import COUNTS, axes, blank
from llmprune.model.shapes import Layout
from llmprune.model.sites.base import Sites, SizeRequest
from llmprune.model.uneven_experts import UnevenExperts
from llmprune.model.whole_experts import WholeExperts
from llmprune.model.widths import Allowed, Budget, nearest, unit_sites
from llmprune.patterns.experts import Experts

TABLE = "tid2eid"  # the experts of every token of the vocabulary, where no router chooses


@dataclass(frozen=True)
class WholeExpertsOfBlocks(Sites):
    """One site for each block that has experts."""

    pattern: Experts

    changes_sizes: ClassVar = True
    shares: ClassVar = "experts"
    sample_tokens: ClassVar = 0  # an expert is known by what it puts out, of which no sample is kept

    def find(self, anatomy: Anatomy) -> Iterator[WholeExperts]:
        """Find the experts of each block."""
        config = anatomy.model.config.get_text_config(decoder=True)
        groups = getattr(config, "n_group", None) or 1
        found = 0
        for number, block in enumerate(anatomy.blocks):
            for name, experts in experts_of(block):
                if any(buffer.endswith(TABLE) for buffer in block.state_dict()):
                    raise RequestError(
                        "pattern",
                        f"the experts of block {number} of this {anatomy.family!r} model are fixed for every "
                        "token, so none can go; prune weights inside them",
                    )
                yield _site(anatomy, number, name, count(experts), groups, found)
                found += 1
        if not found:
            raise RequestError(
                "pattern",
                f"this {anatomy.family!r} model has no experts that llmprune knows how to remove; prune "
                "weights, units or blocks",
            )

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """One count for all blocks in the config's own field, or one for each."""
        return "uniform", "per_layer"

    def default_layout(self, *, uneven: bool) -> Layout:
        """`uniform` if all blocks keep as many, since plain transformers loads it."""
        return "per_layer" if uneven else "uniform"

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """The numbers of experts from which the router can choose as many as before.

        Raises:
            RequestError: fewer would stay than a token needs, the groups do not divide them, or the layout
                cannot store them.
        """
        _require_stored(anatomy, asked)
        config = anatomy.model.config.get_text_config(decoder=True)
        top, found = chosen(config), {}
        for site in unit_sites(anatomy):
            assert isinstance(site, WholeExperts)
            reachable = (getattr(config, "topk_group", None) or site.groups) / site.groups
            # A group is judged by its two best experts, so it needs two.
            smallest = max(top, 2 * site.groups if site.groups > 1 else 1)
            found[site.name] = [
                n
                for n in range(smallest, site.units + 1)
                if n % site.groups == 0 and int(reachable * n) >= top
            ]
            if asked.sparsity:
                _require_possible(site, found[site.name], asked, top)
        return found

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> FewerExperts:
        """The count of every block, stored in the layout of the request."""
        sites = unit_sites(anatomy)
        counts = {site.name: site.units - round(budget[site.name] * site.units) for site in sites}
        return (UnevenExperts if asked.layout == "per_layer" else FewerExperts)(anatomy, counts)


def _require_possible(site: WholeExperts, numbers: list[int], asked: SizeRequest, top: int) -> None:
    """Refuse a sparsity that leaves a token too few experts, or removes none.

    Args:
        site: the experts of a block.
        numbers: how many of them may stay.
        asked: the sparsity, and whether all blocks keep as many.
        top: experts that compute each token.

    Raises:
        RequestError: it says how many must stay, or can go.
    """
    wanted = (1 - asked.sparsity) * site.units
    among = f", chosen among {site.groups} groups" if site.groups > 1 else ""
    if wanted < numbers[0]:
        raise RequestError(
            "sparsity",
            f"{asked.sparsity:g} was asked, and {numbers[0]} of {site.units} experts must stay: each token "
            f"goes to {top}{among}; ask for less",
        )
    if asked.layout == "uniform" and nearest(numbers, wanted) == site.units:
        why = f": as many of each of {site.groups} groups" if site.groups > 1 else ""
        raise RequestError(
            "sparsity",
            f"{asked.sparsity:g} was asked, which is less than half of the fewest experts of {site.units} "
            f"that can go{why}; ask for more",
        )


def _require_stored(anatomy: Anatomy, asked: SizeRequest) -> None:
    """Refuse a layout that cannot store what stays.

    Raises:
        RequestError: it says why.
    """
    if asked.layout == "per_layer":
        rebuilt.require(anatomy, "use --layout uniform", uneven_experts.fields(anatomy))
    elif uneven_experts.differ(anatomy):
        raise RequestError(
            "layout",
            "uniform was asked, and the blocks of this model have different numbers of experts already; use "
            "per_layer",
        )


def _site(anatomy: Anatomy, block: int, name: str, units: int, groups: int, index: int) -> WholeExperts:
    """The site of the experts of one block."""
    path = f"{anatomy.prefix}.{block}.{name}"
    dense, fewer = anatomy.blocks[block], blank(anatomy, block, COUNTS, units // 2)
    cut = axes(dense, fewer)
    after = fewer.state_dict()
    lost = sum(t.numel() - after[key].numel() for key, t in dense.state_dict().items() if key in cut)
    return WholeExperts(
        name=path,
        index=index,
        block=block,
        path=path,
        module=anatomy.module,
        inputs=units,
        outputs=1,
        units=units,
        anatomy=anatomy,
        groups=groups,
        axes=cut,
        shares=lost // (units - units // 2),
    )
