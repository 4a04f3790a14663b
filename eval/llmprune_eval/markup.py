"""HTML and SVG as values: what is not markup already is escaped, so that no file can speak for the page."""

from __future__ import annotations

from html import escape

EMPTY = ("br", "col", "meta")  # elements that HTML never closes


class Markup(str):
    """Text that is HTML already."""


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element; children and attributes are escaped unless they are markup.

    Args:
        name: of the element.
        children: markup, or anything that has a text; None is left out.
        attributes: `class_` is `class`, `stroke_width` is `stroke-width`; None is left out.
    """
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    start = f"<{name}{''.join(words)}>"
    return Markup(start if name in EMPTY else f"{start}{joined(*children)}</{name}>")


def joined(*children: object) -> Markup:
    """Children one after another, escaped unless they are markup."""
    present = (child for child in children if child is not None)
    return Markup("".join(child if isinstance(child, Markup) else escape(str(child)) for child in present))
