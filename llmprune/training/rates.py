"""Learning rates that follow the scale of the parameters.

A step of Adam moves a weight by about its learning rate, whatever the weight is. The root mean square of a
matrix is 0.2 in one model and 0.015 in another, so that no rate fits both; a share of it (Adafactor, Shazeer
and Stern, 2018, arXiv:1804.04235, section 8) can.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

LEAST = 1e-3  # the scale of a parameter that is all zeros, as in Adafactor


def scaled(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimiser's groups, one for each parameter, its rate multiplied by the parameter's scale."""
    return [
        {**group, "params": [p], "lr": group["lr"] * scale(p)} for group in groups for p in group["params"]
    ]


def scale(parameter: Tensor) -> float:
    """The root mean square of a parameter, at least LEAST."""
    return max(LEAST, float(parameter.detach().float().square().mean().sqrt()))
