"""Keep what an engine was measured to do, with its versions; needs nothing but Python's own library."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any


def keep(out: Path | None, rows: dict[str, Any], packages: tuple[str, ...]) -> None:
    """Write the rows to a file of eval/results/serving, if one is named."""
    if out is not None:
        versions = {name: version(name) for name in packages}
        out.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
