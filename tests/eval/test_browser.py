"""The page in a real browser: nothing sticks out at any width, and what is drawn is there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from llmprune_eval import page, runs
from llmprune_eval.runs import read_all, read_files

from tests.eval.pages import copied, folders, judged

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt install chromium")
__all__ = ["folders"]
# A window is never narrower than 500 points, so the page lies in a frame, and tells what it measures.
MEASURE = """<script>addEventListener("load", () => {
  const drawn = [...document.querySelectorAll("svg.wide, svg.narrow")]
  const seen = drawn.filter(one => one.getBoundingClientRect().width > 50)
  const wide = document.documentElement.scrollWidth
  parent.postMessage([wide, innerWidth, drawn.length, seen.length].join(), "*")
})</script>"""
FRAME = """<body style="margin:0">
<script>addEventListener("message", said => document.body.dataset.told = said.data)</script>
<iframe src="{page}" style="border:0" width="{width}" height="3000"></iframe></body>"""


@pytest.fixture(scope="module")
def written(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a folder and a file that were measured."""
    root = tmp_path_factory.mktemp("browser")
    close = {"dataset": "builtin", "kl": 0.05, "top1": 0.9, "predictions": 640}
    drift = {"blocks": [0, 1, 2], "cosine": [0.99, 0.97, 0.9]}
    found = judged(12.0, agreement=[close], drift=drift)
    folder = copied(folders["cut"], root / "cut", evaluation=found)
    file = root / "a-file-with-a-rather-long-name-q8_0.gguf"
    file.write_bytes(bytes(1_000_000))
    runs.beside(file).write_text(json.dumps(judged(12.5, agreement=[close | {"kl": 0.06}])))
    text = page.page(read_all([folder]), read_files([file], 2))
    (root / "page.html").write_text(text.replace("</body>", f"{MEASURE}</body>"))
    return root / "page.html"


def asked(*words: str) -> str:
    """What the browser prints."""
    assert BROWSER is not None
    alone = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    alone += ["--allow-file-access-from-files", "--window-size=1280,3000", "--virtual-time-budget=2000"]
    done = subprocess.run([*alone, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits(written: Path, width: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    framed = tmp_path / "framed.html"
    framed.write_text(FRAME.format(page=written.as_uri(), width=width))
    picture = tmp_path / "page.png"
    asked(f"--screenshot={picture}", framed.as_uri())
    pixels = imread(picture)[..., :3]
    colours = np.unique(pixels[:, :width].reshape(-1, 3), axis=0)
    assert len(colours) > 20  # words, lines and markers
    told = asked("--dump-dom", framed.as_uri()).partition('data-told="')[2].partition('"')[0]
    page_wide, window, plots, seen = map(int, told.split(","))
    assert page_wide <= window
    assert plots == 2 * seen >= 4  # each is drawn twice, and one of both is shown
