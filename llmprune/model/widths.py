"""How many units of each site may stay, and how to round them so that the total sparsity is as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.unit_site import UnitSite

Budget = dict[str, float]  # the share to remove at every site, 0 to 1, by the site's name
Counts = dict[str, int]  # units that stay, by the site's name
Allowed = dict[str, list[int]]  # accepted numbers of units, ascending, by the site's name


def unit_sites(anatomy: Anatomy) -> list[UnitSite]:
    """The sites that consist of units; empty for other kinds."""
    return [site for site in anatomy.sites if isinstance(site, UnitSite)]


def allowed(
    anatomy: Anatomy, multiple: int, fits: Callable[[UnitSite, int], bool], kv_multiple: int = 1
) -> Allowed:
    """The numbers of units that may stay at every site.

    Args:
        anatomy: of a model whose sites consist of units.
        multiple: the number of channels in a block must be a multiple of this, unless all stay.
        fits: whether the model's config accepts a number of units for a site.
        kv_multiple: as `multiple`, of key and value heads.

    Raises:
        RequestError: a multiple is larger than the number of units.
    """
    found: Allowed = {}
    for site in unit_sites(anatomy):
        field, step = ("multiple", multiple) if site.part == "ffn" else ("kv_multiple", kv_multiple)
        if step > site.units:
            units = "channels" if site.part == "ffn" else "groups of heads"
            raise RequestError(
                f"pattern.{field}",
                f"{step} was asked, and {site.name} has {site.units} {units}; ask for a divisor of that",
            )
        counts = {*range(step, site.units + 1, step), site.units}
        found[site.name] = sorted(n for n in counts if n == site.units or fits(site, n))
    return found


def require_reachable(sites: Iterable[UnitSite], allowed: Allowed, sparsity: float) -> None:
    """Refuse a sparsity that would remove the last group of heads, or the last channels, of a block.

    Raises:
        RequestError: it would; the message says how much can be removed.
    """
    sites = list(sites)
    total = sum(site.weights for site in sites)
    most = 1 - sum(allowed[site.name][0] * site.cost for site in sites) / total
    if sparsity > most:
        raise RequestError(
            "sparsity",
            f"{sparsity:g} was asked, and at most {most:.4g} can go: every block keeps "
            "`pattern.kv_multiple` groups of heads and `pattern.multiple` channels; ask for less",
        )


def nearest(numbers: list[int], wanted: float) -> int:
    """The number closest to `wanted`; the larger one if two are equally close."""
    return min(numbers, key=lambda number: (abs(number - wanted), -number))


def round_counts(
    sites: list[UnitSite], allowed: Allowed, wanted: dict[str, float], sparsity: float
) -> Counts:
    """Round the wanted numbers of units so that `sparsity` of all parameters is removed.

    Every site gets the next smaller number that is allowed. Then the sites with the largest remainders get
    one step more each, until no step brings the total closer to its target.

    Args:
        sites: the sites.
        allowed: the numbers of units that may stay.
        wanted: units to keep, not rounded, by the site's name.
        sparsity: share of all parameters of the sites to remove, 0 to 1.
    """
    at = {s.name: max(0, sum(n <= wanted[s.name] for n in allowed[s.name]) - 1) for s in sites}
    missing = (1 - sparsity) * sum(s.weights for s in sites)  # parameters that may still be added
    missing -= sum(allowed[s.name][at[s.name]] * s.cost for s in sites)

    def step(site: UnitSite, by: int) -> int:
        """Parameters that the next larger (1) or smaller (-1) allowed number adds."""
        numbers, here = allowed[site.name], at[site.name]
        return (numbers[here + by] - numbers[here]) * site.cost

    def remainder(site: UnitSite) -> float:
        """How far a site is below the wanted number, as a share of its units."""
        return (wanted[site.name] - allowed[site.name][at[site.name]]) / site.units

    while missing < 0:  # the smallest allowed number can be larger than the wanted one
        site = min((s for s in sites if at[s.name] > 0), key=remainder)
        missing -= step(site, -1)
        at[site.name] -= 1
    while True:
        # A step of up to twice what is missing ends at least as close to the target as no step.
        growing = [s for s in sites if at[s.name] + 1 < len(allowed[s.name]) and step(s, 1) <= 2 * missing]
        if not growing:
            return {s.name: allowed[s.name][at[s.name]] for s in sites}
        site = max(growing, key=remainder)
        missing -= step(site, 1)
        at[site.name] += 1


def budget_of(sites: list[UnitSite], counts: Counts) -> Budget:
    """Return the share of units to remove at every site, given the number of units to keep."""
    return {site.name: 1 - counts[site.name] / site.units for site in sites}
