from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture
def place(checkpoints: tiny.Checkpoints, tmp_path: Path) -> dict[str, str]:
    """What the braces in the commands below stand for; every file that they name is there."""
    files = {
        "table.jsonl": '{"text": "a b c"}\n',
        "broken.jsonl": '{"text": "a',
        "empty.txt": "",
        "short.txt": "a b c",
        "wrong.yaml": "method: wanda\nsparcity: 0.5\n",
        "list.yaml": "- wanda\n",
        "broken.yaml": "method: [",
        "nomodel.yaml": "method: wanda\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    (tmp_path / "bare").mkdir()
    left_out = shutil.ignore_patterns("tokenizer*", "special_tokens*")
    shutil.copytree(checkpoints("llama"), tmp_path / "wordless", ignore=left_out)
    return {"model": str(checkpoints("llama")), "out": str(tmp_path / "out"), "tmp": str(tmp_path)}
