"""Whole experts of the blocks of a mixture: any family whose experts transformers' own kernels compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.experts import chosen, count, experts_of
from llmprune.model.fewer_experts import FewerExperts
from llmprune.model.resized import COUNTS, axes, blank
from llmprune.model.shapes import Layout
from llmprune.model.sites.base import Sites, SizeRequest
from llmprune.model.whole_experts import WholeExperts
from llmprune.model.widths import Allowed, Budget, unit_sites
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
        """One count for all blocks, in the config's own field."""
        return ("uniform",)

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """The numbers of experts from which the router can choose as many as before.

        Raises:
            RequestError: fewer would stay than a token needs, or the groups do not divide them.
        """
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
            wanted = (1 - asked.sparsity) * site.units
            if asked.sparsity and wanted < found[site.name][0]:
                raise RequestError(
                    "sparsity",
                    f"{asked.sparsity:g} was asked, and {found[site.name][0]} of {site.units} experts must "
                    f"stay: each token goes to {top}{_in_groups(site.groups)}; ask for less",
                )
            if asked.sparsity and min(found[site.name], key=lambda n: abs(n - wanted)) == site.units:
                why = f": as many of each of {site.groups} groups" if site.groups > 1 else ""
                raise RequestError(
                    "sparsity",
                    f"{asked.sparsity:g} was asked, which is less than half of the fewest experts of "
                    f"{site.units} that can go{why}; ask for more",
                )
        return found

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> FewerExperts:
        """The same count in every block."""
        counts = {site.units - round(budget[site.name] * site.units) for site in unit_sites(anatomy)}
        assert len(counts) == 1, "the allocation is uniform"
        return FewerExperts(anatomy, counts.pop())


def _in_groups(groups: int) -> str:
    return f", chosen among {groups} groups" if groups > 1 else ""


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
