"""The recipes that were tried to reach a target, in words."""

from __future__ import annotations

from llmprune.measured import Planned, Tried


def reached(planned: Planned, one: Tried) -> str:
    """What was asked, and what a candidate reached: bytes, or decode speeds over the dense model's."""
    goal, found, dense = planned["goal"], one["reached"], planned["dense"]
    if planned["target"].endswith("decode"):
        return f"{dense / goal:.3f}x asked, {dense / found:.3f}x reached"
    return f"{goal:,.0f} bytes asked, {found:,.0f} reached"


def over_dense(planned: Planned, taken: float) -> float:
    """A model's bytes over those of the dense one; for a target of speed, its speed over that one's."""
    share = taken / planned["dense"]
    return 1 / share if planned["target"].endswith("decode") else share


def rows(planned: Planned) -> list[list[str]]:
    """The candidates: name, what was expected and reached over the dense model, KL, bits per byte."""
    found = []
    for one in planned["candidates"]:
        kl, bits = one.get("kl"), one.get("bits_per_byte")
        found.append(
            [
                one["name"] + (" (chosen)" if one["name"] == planned["chosen"] else ""),
                f"{over_dense(planned, one['expected']):.4f}x",
                f"{over_dense(planned, one['reached']):.4f}x" if "reached" in one else "",
                "" if kl is None else f"{kl:.4f}",
                "" if bits is None else f"{bits:.4f}",
            ]
        )
    return found


def sentences(planned: Planned | None) -> list[str]:
    """A sentence about each candidate that was tried."""
    what = "as fast as" if planned and planned["target"].endswith("decode") else "of the bytes of"
    return [
        f"{name}: {reached} {what} the dense model, " + (f"KL {kl}, " if kl else "") + f"{bits} bits per byte"
        for name, _, reached, kl, bits in (rows(planned) if planned else [])
    ]
