"""What is installed is what lies here, and nothing that lies elsewhere hides it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.test_architecture import FILES, HOMES, ROOT


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """Scripts often lie beside the clone."""
    (tmp_path / "llmprune").mkdir()
    script = tmp_path / "mine.py"
    script.write_text("import llmprune, llmprune_eval, llmprune_kernels; llmprune.Recipe")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_outer_folders_are_no_packages() -> None:
    """A root package called `kernels` would hide the one that transformers looks for."""
    for name in ("kernels", "eval", "recipes", "."):
        assert not (ROOT / name / "__init__.py").exists()


def test_the_wheel_holds_every_package_on_disk() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert {Path(folder).name: ROOT / folder for folder in targets["wheel"]["packages"]} == HOMES
    data = targets["wheel"]["force-include"]
    assert data == {"recipes": "llmprune/recipes", "eval/suites": "llmprune_eval/suites"}
    assert all(list((ROOT / folder).glob("*.yaml")) for folder in data)
    on_disk = {module.removesuffix(".__init__") for module in FILES if module.endswith(".__init__")}
    folders = {module.rsplit(".", 1)[0] for module in FILES}
    assert folders == on_disk, "every folder with modules has an __init__.py"


def test_the_module_is_the_command() -> None:
    words = [sys.executable, "-m", "llmprune"]
    done = subprocess.run([*words, "methods", "--json"], capture_output=True, text=True)
    assert done.returncode == 0 and '"wanda"' in done.stdout, done.stderr
    refused = subprocess.run([*words, "prune", "nowhere"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("llmprune: ")
