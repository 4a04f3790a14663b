"""The config of the decoder, and its place in the config of a model that has other parts too."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedConfig, PreTrainedModel

Settings = dict[str, object]  # config.json, or a mapping inside it


def decoder_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The config of the decoder."""
    return model.config.get_text_config(decoder=True)


def place(model: PreTrainedModel) -> str | None:
    """The key of the decoder's config inside the model's, such as `text_config`; None if it is the same."""
    own = decoder_config(model)
    parts = type(model.config).sub_configs
    return next((name for name in parts if getattr(model.config, name, None) is own), None)


def stored_in(model: PreTrainedModel) -> PreTrainedConfig:
    """The config that holds the decoder's settings: its own or the model's, and never a copy."""
    where = place(model)
    return model.config if where is None else getattr(model.config, where)


def changed(model: PreTrainedModel, settings: Settings, change: Callable[[Settings], Settings]) -> Settings:
    """config.json with the decoder's own settings changed, wherever they are."""
    where = place(model)
    if where is None:
        return change(settings)
    own = settings.get(where)
    return settings | {where: change(dict(own) if isinstance(own, dict) else {})}
