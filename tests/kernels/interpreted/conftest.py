"""These tests need Triton's interpreter from the start of the process; ../test_interpreted.py runs them."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
