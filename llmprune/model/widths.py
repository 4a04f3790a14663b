"""How many units of each site may stay, and whole numbers that add up to the share that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.unit_site import UnitSite

Counts = dict[str, int]  # units that stay, by the site's name
Allowed = dict[str, list[int]]  # the numbers of units that may stay, ascending, by the site's name


def unit_sites(anatomy: Anatomy) -> list[UnitSite]:
    """The sites of an anatomy whose sites are units."""
    return [site for site in anatomy.sites if isinstance(site, UnitSite)]


def allowed(anatomy: Anatomy, multiple: int, fits: Callable[[UnitSite, int], bool]) -> Allowed:
    """The numbers of units that may stay at every site: at least one step, and all of them.

    Args:
        anatomy: whose sites are units.
        multiple: of the channels that stay in a block.
        fits: whether the model's config can have so many units of a site.

    Raises:
        RequestError: the multiple is larger than the width.
    """
    found: Allowed = {}
    for site in unit_sites(anatomy):
        step = multiple if site.part == "ffn" else 1
        if step > site.units:
            raise RequestError(
                "pattern.multiple",
                f"{multiple} was asked, and {site.name} has {site.units} channels; ask for a divisor of that",
            )
        counts = {*range(step, site.units + 1, step), site.units}
        found[site.name] = sorted(n for n in counts if n == site.units or fits(site, n))
    return found


def require_reachable(sites: Iterable[UnitSite], allowed: Allowed, sparsity: float) -> None:
    """Refuse a share that would take the last group of heads, or the last channels, of a block.

    Raises:
        RequestError: it says what is the most that can go.
    """
    sites = list(sites)
    total = sum(site.weights for site in sites)
    most = 1 - sum(allowed[site.name][0] * site.cost for site in sites) / total
    if sparsity > most:
        raise RequestError(
            "sparsity",
            f"{sparsity:g} was asked, and at most {most:.4g} can go: every block keeps a group of heads and "
            "a multiple of channels; ask for less, or lower pattern.multiple",
        )


def nearest(numbers: list[int], wanted: float) -> int:
    """The number closest to the one wanted; of two as close, the larger."""
    return min(numbers, key=lambda number: (abs(number - wanted), -number))


def settle(sites: list[UnitSite], allowed: Allowed, wanted: dict[str, float], sparsity: float) -> Counts:
    """Whole numbers close to the wanted ones, of which `sparsity` of all parameters is left out.

    Every site gets the next smaller number that is allowed; what is then still missing to the total goes in
    steps to the sites with the largest remainders, until no step brings the total closer.
    """
    at = {s.name: max(0, sum(n <= wanted[s.name] for n in allowed[s.name]) - 1) for s in sites}
    left = (1 - sparsity) * sum(s.weights for s in sites)
    left -= sum(allowed[s.name][at[s.name]] * s.cost for s in sites)

    def step(site: UnitSite, by: int) -> int:
        """Parameters that one more step, or one fewer, adds."""
        numbers, here = allowed[site.name], at[site.name]
        return (numbers[here + by] - numbers[here]) * site.cost

    def remainder(site: UnitSite) -> float:
        """How far a site is below what was wanted, as a share of its units."""
        return (wanted[site.name] - allowed[site.name][at[site.name]]) / site.units

    while left < 0:  # the least that must stay was more than what was wanted
        site = min((s for s in sites if at[s.name] > 0), key=remainder)
        left -= step(site, -1)
        at[site.name] -= 1
    while True:
        growing = [s for s in sites if at[s.name] + 1 < len(allowed[s.name]) and step(s, 1) <= 2 * left]
        if not growing:
            return {s.name: allowed[s.name][at[s.name]] for s in sites}
        site = max(growing, key=remainder)
        left -= step(site, 1)
        at[site.name] += 1
