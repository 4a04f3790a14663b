"""The house keeps its shape: who imports whom, how long things are, and who knows a model family."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
HOMES = {
    "llmprune": ROOT / "llmprune",
    "llmprune_kernels": ROOT / "kernels" / "llmprune_kernels",
    "llmprune_eval": ROOT / "eval" / "llmprune_eval",
}
# A file imports only from floors below its own, or from its own folder.
FLOORS = {
    0: ["errors", "measured", "paths", "llmprune_kernels"],
    1: ["ranks"],
    2: ["progress", "plugins", "tensors", "vocabulary"],
    3: ["patterns", "report"],
    4: ["methods", "repair"],
    5: ["model"],
    6: ["checkpoint"],
    7: ["walk", "loading"],
    8: ["export", "text"],
    9: ["allocation", "training"],
    10: ["recovery"],
    11: ["recipe"],
    12: ["run"],
    13: ["hub", "recovering"],
    14: ["pruning", "scoring"],
    15: ["__init__", "llmprune_eval"],
    16: ["planning"],
    17: ["cli"],
    18: ["__main__"],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# Packages with folders inside, which keep floors of their own.
INNER = {
    "llmprune_kernels": (
        "errors device closeness epilogue",
        "tuning formats job",
        "dense",
        "sp24",
        "ops aot",
        "modules",
        "acceleration __init__",
    ),
    "llmprune.text": (
        "chat windows tokenizing cache bos",
        "tables",
        "sampling",
        "sources",
        "calibration __init__",
    ),
}
INNER_FLOOR = {
    package: {name: floor for floor, names in enumerate(floors) for name in names.split()}
    for package, floors in INNER.items()
}
MAY_IMPORT_TRANSFORMERS = (
    "model",
    "checkpoint",
    "walk",
    "text",
    "export",
    "training",
    "run",
    "pruning",
    "loading",
    "cli",
)
TENSORS_ONLY = ("plugins", "tensors", "methods", "recipe")
FILE, PLUGIN, FUNCTION, NESTING = 300, 150, 60, 3
# Kernels are long by nature: many pointers and strides, and a tile of code that must not be cut up.
# A command's function is its list of options, one a line, and that is what `--help` shows.
LONG_FUNCTIONS = ("cli", "llmprune_kernels")


def files() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package, folder in HOMES.items():
        for file in folder.rglob("*.py"):
            found[".".join([package, *file.relative_to(folder).with_suffix("").parts])] = file
    return found


FILES = files()


def for_each(modules: Iterable[str]) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """Make a rule for one module a test of many, which names every one that breaks it."""

    def rules(rule: Callable[[str], None]) -> Callable[[], None]:
        def test() -> None:
            broken = []
            for module in sorted(modules):
                try:
                    rule(module)
                except AssertionError as error:
                    broken.append(f"{module}: {error}")
            assert not broken, "\n".join(broken)

        test.__name__, test.__doc__ = rule.__name__, rule.__doc__
        return test

    return rules


every_file = for_each(FILES)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def room(module: str) -> str:
    """The part of the house that a module belongs to: a file of `llmprune`, a folder of it, or a package."""
    package, *rest = module.split(".")
    return (rest or ["__init__"])[0] if package == "llmprune" else package


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            ours = inside in FILES or f"{inside}.__init__" in FILES
            yield inside if ours else str(node.module)


@cache
def imports(module: str) -> set[str]:
    """All modules that a module imports, those imported inside functions too."""
    return set(chain.from_iterable(map(imported, ast.walk(tree(module)))))


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def nesting(node: ast.AST) -> int:
    """How deep the blocks of a function lie inside one another; an `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        opens = isinstance(child, ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match)
        chained = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, nesting(child) + (opens and not chained))
    return deepest


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    assert {room(module) for module in FILES} == set(FLOOR)
    assert len(FLOOR) == sum(map(len, FLOORS.values()))


@every_file
def test_a_file_imports_only_from_the_floors_below(module: str) -> None:
    here = room(module)
    for name in imports(module):
        if name.split(".")[0] not in HOMES:
            continue
        there = room(name)
        same_folder = there == here and f"{module.rsplit('.', 1)[0]}." in f"{name}."
        same_folder = same_folder or (module.split(".")[:3], here) == (["llmprune", "model", "sites"], there)
        same_folder = same_folder or name == f"llmprune.{here}.base"  # of a plug-in that is a package
        same_folder = same_folder or (there == here and any(map(module.startswith, INNER)))
        assert same_folder or FLOOR[there] < FLOOR[here], f"{module} must not import {name}"


@for_each(m for m in FILES if m.startswith(tuple(f"{package}." for package in INNER)))
def test_a_package_with_folders_keeps_floors_of_its_own(module: str) -> None:
    package = next(one for one in INNER if module.startswith(f"{one}."))

    def inside(name: str) -> str:
        return name.removeprefix(f"{package}.").split(".")[0]

    floor = INNER_FLOOR[package]
    for name in imports(module):
        if name.startswith(f"{package}."):
            same = inside(name) == inside(module)
            assert same or floor[inside(name)] < floor[inside(module)], f"{module} must not import {name}"


def test_the_floors_carry_weight() -> None:
    """The check sees imports of every form: without them it would pass whatever the house looked like."""
    seen = {(room(m), room(n)) for m in FILES for n in imports(m) if n.split(".")[0] in HOMES}
    assert {("walk", "model"), ("allocation", "walk"), ("pruning", "run"), ("cli", "pruning")} <= seen
    assert ("cli", "llmprune_eval") in seen
    assert ("run", "pruning") not in seen


@for_each(m for m in FILES if m.startswith("llmprune."))
def test_a_method_that_learns_is_named_in_its_own_folder_alone(module: str) -> None:
    if not module.startswith("llmprune.methods.prunenet."):
        assert "prunenet" not in FILES[module].read_text().lower()


@every_file
def test_only_the_rooms_that_handle_models_import_transformers(module: str) -> None:
    if room(module) not in MAY_IMPORT_TRANSFORMERS:
        assert not [n for n in imports(module) if n.split(".")[0] == "transformers"]
    if room(module) in TENSORS_ONLY:
        assert "llmprune.model.anatomy" not in imports(module)


@every_file
def test_heavy_tools_stay_in_their_rooms(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(module)}
    for tool, owner in (("lm_eval", "llmprune_eval"), ("triton", "llmprune_kernels"), ("typer", "cli")):
        assert tool not in tops or room(module) == owner


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


def test_methods_work_without_any_model_library() -> None:
    code = (
        "import sys\n"
        "from llmprune import plugins\n"
        "from llmprune.methods.base import Method\n"
        "for name in plugins.names('llmprune.methods'):\n"
        "    plugins.find('llmprune.methods', name, Method)\n"
        "print([m for m in ('transformers', 'accelerate', 'llmprune.model.anatomy', 'llmprune.walk.walk')"
        " if m in sys.modules])"
    )
    assert fresh(code) == "[]"


def test_importing_llmprune_does_no_work() -> None:
    assert fresh("import sys, llmprune; print('torch' in sys.modules)") == "False"


def test_a_public_name_is_not_hidden_by_the_module_of_the_same_name() -> None:
    code = (
        "import llmprune.pruning, llmprune.loading, llmprune.recipe, llmprune.report; "
        "print(callable(llmprune.prune), callable(llmprune.load))"
    )
    assert fresh(code) == "True True"


@every_file
def test_files_are_short(module: str) -> None:
    plugin = room(module) in ("methods", "allocation")
    length = len(FILES[module].read_text().splitlines())
    assert length <= (PLUGIN if plugin else FILE), f"{module} has {length} lines"


@every_file
def test_functions_are_short_and_shallow(module: str) -> None:
    for function in functions(tree(module)):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= FUNCTION or room(module) in LONG_FUNCTIONS, f"{function.name} has {length} lines"
        depth = nesting(function)
        assert depth <= NESTING, f"{function.name} is {depth} deep"


def test_nesting_is_counted_as_a_reader_counts_it() -> None:
    deep = "def f():\n for a in b:\n  if a:\n   with c:\n    while d: pass\n"
    flat = "def f():\n if a: pass\n elif b: pass\n elif c: pass\n else:\n  if d: pass\n  e()\n"
    inner = "def f():\n if a:\n  def g():\n   if b: pass\n"
    assert [nesting(next(functions(ast.parse(code)))) for code in (deep, flat, inner)] == [4, 2, 1]


# Of transformers, and of llama.cpp.
KNOW_FAMILIES = {"llmprune.model.families", "llmprune.export.families"}
C_NAMES = {"llmprune_eval.engine"}  # those of llama.cpp begin so
FAMILY = re.compile(
    "(?<![a-z0-9])(?:"
    + "|".join(sorted({re.escape(key) for key in tiny.FAMILIES} | {"gemma3", "gpt", "mixtral", "deepseek"}))
    + r")(?![a-z0-9]|\.cpp|-server)",
    re.IGNORECASE,
)


def words(text: str) -> str:
    """`LlamaForCausalLM` as `Llama For Causal LM`; underscores part words too."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text)


def spoken(node: ast.Module) -> Iterator[str]:
    """Every identifier and every string of a file but its docstrings."""
    silent = {
        id(child.value)
        for child in ast.walk(node)
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
    }
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and id(child) not in silent:
            yield child.value
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            if isinstance(name := getattr(child, field, None), str):
                yield name


def families_in(node: ast.Module) -> list[str]:
    return [text for text in spoken(node) if FAMILY.search(words(text)) or FAMILY.search(text)]


@for_each(set(FILES) - KNOW_FAMILIES - C_NAMES)
def test_only_two_files_know_a_family_by_name(module: str) -> None:
    assert families_in(tree(module)) == []


@pytest.mark.parametrize(
    "code",
    [
        'if kind == "llama": pass',
        "from transformers import GPT2LMHeadModel",
        "class A:\n    def prune_opt(self): pass",
        'x = f"a {y} mistral layer"',
        'x = {"model.gemma2.layers": 1}',
        'x = "gemma3_text"',
    ],
)
def test_a_family_is_recognised_in_every_guise(code: str) -> None:
    assert families_in(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    ['"""Llama is a docstring."""', "options = adopted", 'x = "llama.cpp reads it"', "x = 1  # llama"],
)
def test_what_is_no_family_is_let_through(code: str) -> None:
    assert not families_in(ast.parse(code))


# What Python has on Linux, and not on Windows or macOS; kernels are for Linux.
LINUX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
LINUX_CALLS = re.compile(
    r"os\.(sched_\w+|fork\w*|get[ei]?[ug]id|getpgid|killpg|setsid|wait\w*|uname|sysconf|statvfs|mkfifo|chown|"
    r"getloadavg|sendfile|memfd_create|eventfd|posix_\w+|nice|sync)|"
    r"signal\.(SIGKILL|SIGHUP|SIGUSR[12]|SIGALRM|SIGQUIT|alarm|setitimer|pause|pthread_\w+)|"
    r"time\.(tzset|clock_gettime\w*|pthread_\w+)|(socket\.)?AF_UNIX|(multiprocessing\.)?get_context\('fork\w*'\)"
)
LINUX_PATHS = re.compile(r"/(proc|sys|dev|etc|tmp|usr|var|home)(/|$)")
PORTABLE = sorted(module for module in FILES if room(module) != "llmprune_kernels")


def of_linux(node: ast.AST) -> Iterator[str]:
    """What of a piece of code only Linux has, outside functions that ask which system this is."""
    asks = ("sys.platform", "os.name", "platform.system")
    if isinstance(node, ast.FunctionDef) and any(word in ast.unparse(node) for word in asks):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from LINUX_MODULES & {name.split(".")[0] for name in imported(node)}
    if isinstance(node, ast.Attribute | ast.Call | ast.Name) and LINUX_CALLS.fullmatch(ast.unparse(node)):
        yield ast.unparse(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and LINUX_PATHS.match(node.value):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from of_linux(child)


@pytest.mark.parametrize("module", PORTABLE)
def test_nothing_outside_kernels_needs_linux(module: str) -> None:
    assert list(of_linux(tree(module))) == []


@pytest.mark.parametrize("module", sorted(set(PORTABLE) - {"llmprune.checkpoint.devices"}))
def test_accelerators_are_those_that_torch_finds(module: str) -> None:
    """One file asks for them; nothing is said of CUDA alone but in what a user reads."""
    kinds = [ast.unparse(n) for n in ast.walk(tree(module)) if isinstance(n, ast.Attribute)]
    assert not [said for said in kinds if re.match(r"torch\.(cuda|xpu|mps)\b", said)]


@pytest.mark.parametrize(
    "code",
    [
        "import resource",
        "from fcntl import flock",
        "n = len(os.sched_getaffinity(0))",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "x = open('/proc/self/status')",
        "c = multiprocessing.get_context('forkserver')",
        "def f():\n return os.statvfs(x)",
    ],
)
def test_what_needs_linux_is_recognised(code: str) -> None:
    assert list(of_linux(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["def f():\n if sys.platform != 'win32':\n  import resource", "os.replace(a, b)", "x = 'a/dev/b'"]
)
def test_what_every_system_has_is_let_through(code: str) -> None:
    assert not list(of_linux(ast.parse(code)))
