"""Let the blocks of a checkpoint wait between walks where a device map puts them, and count that."""

from __future__ import annotations

import dataclasses

import torch

from llmprune import ranks
from llmprune.checkpoint import devices, placement
from llmprune.checkpoint.opened import Opened
from llmprune.checkpoint.placement import Asked, roomy
from llmprune.errors import RequestError
from llmprune.run.plan import Plan


def with_waiting(made: Plan, model: Opened) -> Plan:
    """A plan that counts the blocks of a model that wait in memory."""
    own = devices.numbered(model.resources.device)
    needed, on_host = (model.waits_on(place) for place in (own, "cpu"))
    return dataclasses.replace(
        made, needed_bytes=made.needed_bytes + needed, host_bytes=made.host_bytes + on_host
    )


def placed(model: Opened, asked: Asked, needed: int, on_host: int) -> Opened:
    """A checkpoint whose blocks wait where a device map puts them.

    Args:
        model: the checkpoint.
        asked: the map.
        needed: bytes that the run needs on its device.
        on_host: of these in host memory.

    Raises:
        RequestError: the map does not fit the model or the machine, or several processes were started.
    """
    if ranks.count() > 1:
        raise RequestError(
            "device_map", f"each of {ranks.count()} processes has a device of its own; leave the map out"
        )
    assert model.source is not None
    where, host = model.resources, devices.free(torch.device("cpu"))
    room = {"cpu": roomy(host) - on_host, devices.numbered(where.device): roomy(where.available) - needed}
    places = placement.settled(asked, model.anatomy.model, model.source.size[1], room)
    return dataclasses.replace(model, places=places)
