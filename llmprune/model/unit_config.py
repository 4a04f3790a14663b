"""The config fields that hold the number of units: how to read, set and check them."""

from __future__ import annotations

from llmprune.model.anatomy import Anatomy
from llmprune.model.decoder_config import decoder_config
from llmprune.model.shapes import Settings
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import unit_sites


def size_fields(anatomy: Anatomy, site: UnitSite, units: int) -> Settings:
    """The config fields that hold the number of units of a site, with their values."""
    if site.part == "ffn":
        row = anatomy.family_row()
        return {row.width: units, **row.with_width}
    config = anatomy.block_config(site.block)
    return {
        "num_attention_heads": config.num_attention_heads * units // site.units,
        "num_key_value_heads": units,
    }


def head_dim(anatomy: Anatomy) -> int:
    """Size of one attention head in the dense model."""
    site = next(site for site in unit_sites(anatomy) if site.part == "attention")
    return int(site.inputs // anatomy.block_config(site.block).num_attention_heads)


def fits(anatomy: Anatomy, site: UnitSite, units: int) -> bool:
    """Whether the model's config accepts this number of units in every block."""
    if site.part == "ffn":
        return True
    config = decoder_config(anatomy.model)
    sizes = size_fields(anatomy, site, units) | {"head_dim": head_dim(anatomy)}
    try:
        type(config)(**{**without_layers(config.to_dict()), **sizes})
    except Exception:  # the checks of a config, such as heads that must divide a size, raise many types
        return False
    return True


def without_layers(settings: Settings) -> Settings:
    """config.json without the sizes of single layers."""
    layered = ("per_layer_config", "allow_global_per_layer_attribute_access")
    return {key: value for key, value in settings.items() if key not in layered}
