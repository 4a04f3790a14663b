"""What `llmprune demo` measures, the dense model beside the pruned one, as README.md shows it.

The figures and their protocols are the command's own; speeds are those of a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from against_authors import commit
from table import MODEL, RESULTS

SPEEDS = {
    "prefill, tokens per second": "prefill_tokens_per_s",
    "decode, tokens per second": "decode_tokens_per_s",
}


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines of the table, from what the command prints with --json."""
    totals, both = found["totals"], found["comparison"]
    size = [totals[when] / 1e6 for when in ("bytes_before", "bytes_after")]
    bits = [found[which]["bits_per_byte"] for which in ("dense", "pruned")]
    speeds = {
        what: _row([one[key] for one in found["bench"]["models"]], **found["bench"]["ratios"][key])
        for what, key in SPEEDS.items()
    }
    return {
        "weight files, MB": _row(size, size[1] / size[0]),
        **speeds,
        "bits per byte of held-out text": _row(bits, both["bits_per_byte"], both["interval"]),
    }


def _row(figures: list[float], ratio: float, interval: list[float] | None = None) -> dict[str, Any]:
    return {"dense": figures[0], "pruned": figures[1], "ratio": {"ratio": ratio, "interval": interval}}


def main() -> None:
    """Run the demo and keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the demo's folder, which must not exist yet")
    out = parser.parse_args().out
    start = time.monotonic()
    asked = [sys.executable, "-m", "llmprune", "demo", "--json", "--out", str(out)]
    found = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    speed = found["bench"]
    told = {
        "protocol": f"{' '.join(str(__doc__).split())} {found['pruned']['protocol']}; {speed['protocol']}",
        "model": MODEL,
        "commit": commit(),
        "seconds": round(time.monotonic() - start),
        "agreement": found["agreement"],
        "rows": rows(found),
    }
    (RESULTS / MODEL / "demo.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
