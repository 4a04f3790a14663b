"""Zero-shot and few-shot scores, measured by lm-eval through its own Python interface.

Nothing is computed here that lm-eval computes: prompts, scoring and errors are its own, so the figures are
those of its command on the same folder.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import random
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmprune.errors import JobError, LlmpruneError, RequestError, first_line
from llmprune_eval import scores
from llmprune_eval.perplexity import require_known

HERE = Path(__file__).parent
SUITES = HERE / "suites" if (HERE / "suites").is_dir() else HERE.parent / "suites"
WRITTEN = "generate_until"  # lm-eval's word


@dataclass(frozen=True)
class Ask:
    """What lm-eval is asked."""

    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: int | None = None
    """Questions of each task."""

    seed: int | None = None
    """Draws these questions; the first ones are asked where there is none."""

    batch_size: str = "1"
    data: Path | None = None
    """A folder that holds data sets under their names on the Hub, where that is out of reach."""

    chat: bool = False
    """Whether questions go through the model's chat template, examples as turns before."""


def suites() -> list[str]:
    """The names of the shipped suites."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def tasks_of(suite: str) -> list[str]:
    """The tasks of a suite."""
    return list(_suite(suite)["tasks"])


def _suite(name: str) -> dict[str, Any]:
    suite: dict[str, Any] = yaml.safe_load((SUITES / f"{name}.yaml").read_text())
    return suite


def ask(
    names: str,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    seed: int | None = None,
    batch_size: str = "1",
    data: Path | None = None,
) -> Ask:
    """What `--tasks` and its companions ask for; a suite's own settings give way to those.

    Raises:
        RequestError: lm-eval is not installed, has no such task, or suites want other settings than the rest.
    """
    parts = {name: _part(name) for name in filter(None, names.split(","))}
    tasks = [task for part in parts.values() for task in part["tasks"]]
    num_fewshot = _common(parts, "num_fewshot") if num_fewshot is None else num_fewshot
    limit = _common(parts, "limit") if limit is None else limit
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise RequestError("batch_size", f"{batch_size!r} is neither auto nor a number from 1 on")
    if data is not None and not data.is_dir():
        raise RequestError("data", f"{data} is no folder; give one that holds data sets by their Hub names")
    if not tasks:
        raise RequestError("tasks", f"none were named; give lm-eval's, or a suite ({', '.join(suites())})")
    if seed is not None and limit is None:
        raise RequestError("seed", f"{seed} was given, and all questions are asked; give --limit as well")
    _require_here()
    return Ask(tuple(dict.fromkeys(tasks)), num_fewshot, limit, seed, batch_size, data)


def _part(name: str) -> dict[str, Any]:
    """A suite, or a task as one without settings."""
    if name in suites():
        return _suite(name)
    _require_known(name)
    return {"tasks": [name]}


def _common(parts: dict[str, dict[str, Any]], setting: str) -> int | None:
    """A setting that all parts have alike: lm-eval takes one for all tasks."""
    found = {name: part.get(setting) for name, part in parts.items()}
    if len({*found.values()}) > 1:
        said = ", ".join(f"{value or 'none'} for {name}" for name, value in found.items())
        flag = setting.replace("_", "-")
        raise RequestError(setting, f"it differs: {said}; ask for them one at a time, or give --{flag}")
    return next(iter(found.values()), None)


def _require_known(task: str) -> None:
    _require_here()
    known = _manager().all_tasks
    if task not in known:
        near = difflib.get_close_matches(task, [*known, *suites()], 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise RequestError("tasks", f"lm-eval has no task {task!r}{hint}")


def _require_here() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise RequestError(
            "tasks", "they are scored by lm-eval, which is not here; pip install 'llmprune[eval]'"
        )


@cache
def _manager() -> Any:
    """lm-eval's list of tasks, which takes it half a minute to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def score(model: Any, tokenizer: Any, asked: Ask, scorer: type | None = None) -> dict[str, Any]:
    """The scores of a model.

    Args:
        model: any that lm-eval can score.
        tokenizer: its own.
        asked: which tasks, and how.
        scorer: computes the likelihoods; lm-eval's `HFLM` where none is given. One that has `require` is
            asked first whether it takes the tasks that need them.

    Returns:
        `tasks`: for each task or group its metrics and standard errors as lm-eval names them, with `metric`,
        the one that counts, whether `higher_is_better`, `examples`, its value for every question where it has
        one, the `interval` of their mean, and how many `questions` were asked of how many there are;
        `chance`, the score of guessing among given answers; `chat`, the template that questions went
        through, if any; `versions` of the tasks.

    Raises:
        RequestError: lm-eval cannot score a task as asked, or lacks a package for it; or the tokenizer is
            another model's.
        JobError: a task's data is out of reach.
    """
    import lm_eval

    found = _found(model, tokenizer, asked, scorer)
    how = {"chat": template(tokenizer)} if asked.chat else {}
    tasks = {name: scores.of(name, values, found) | how for name, values in found["results"].items()}
    return {"tasks": tasks, "versions": {"lm_eval": lm_eval.__version__, **found["versions"]}}


def template(tokenizer: Any) -> str:
    """What a chat template goes by in protocols: the beginning of its sha256."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:8]


def require_template(tokenizer: Any, name: str, option: str) -> None:
    """Refuse a model that does not chat.

    Raises:
        RequestError: it has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError(option, f"it was asked to chat, and {name} has no chat template; leave it out")


def _found(model: Any, tokenizer: Any, asked: Ask, scorer: type | None) -> dict[str, Any]:
    """All that lm-eval finds, or in a sentence why it finds nothing."""
    named = ", ".join(asked.tasks)
    try:
        return _evaluated(model, tokenizer, asked, scorer)
    except LlmpruneError:
        raise
    except ImportError as error:
        raise RequestError(
            "tasks", f"{named} cannot be scored without a package ({first_line(error)}); install it"
        ) from error
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        if _about_data(error):
            raise JobError(
                f"the data of {named} is out of reach ({first_line(error)}); give --data a folder that "
                "holds it under its Hub name, such as allenai/ai2_arc"
            ) from error
        if isinstance(error, OSError | ValueError):
            raise RequestError(
                "tasks", f"lm-eval cannot score {named} as asked ({first_line(error)}); ask otherwise"
            ) from error
        require_known(model, max(tokenizer.get_vocab().values()))
        raise


def _about_data(error: Exception) -> bool:
    """Whether it is about reading data, rather than about what was asked of them."""
    frames = traceback.walk_tb(error.__traceback__)
    inside = any(frame.f_globals.get("__name__", "").startswith("datasets.") for frame, _ in frames)
    return inside or isinstance(error, OSError)


def _evaluated(model: Any, tokenizer: Any, asked: Ask, scorer: type | None) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    width = asked.batch_size if asked.batch_size == "auto" else int(asked.batch_size)
    lm = (scorer or HFLM)(pretrained=model, tokenizer=tokenizer, batch_size=width)
    with _inside(asked.data), _without_git(), contextlib.redirect_stdout(sys.stderr):  # it prints findings
        if require := getattr(lm, "require", None):
            require([name for name, task in _loaded(asked).items() if task.OUTPUT_TYPE != WRITTEN])
        found = lm_eval.simple_evaluate(
            lm,
            tasks=list(asked.tasks),
            num_fewshot=asked.num_fewshot,
            apply_chat_template=asked.chat,
            fewshot_as_multiturn=asked.chat,
            task_manager=_manager(),
            **_questions(asked),
        )
    assert found is not None
    return dict(found)


def _questions(asked: Ask) -> dict[str, Any]:
    """Which questions lm-eval is to ask, in its own words."""
    if asked.seed is None or asked.limit is None:
        return {"limit": asked.limit}
    drawn = {}
    for name, task in _loaded(asked).items():
        count = len(task.eval_docs)
        shuffled = random.Random(asked.seed).sample(range(count), count)  # a smaller limit asks some of these
        drawn[name] = sorted(shuffled[: asked.limit])  # lm-eval numbers the answers by this list
    return {"samples": drawn}


def _loaded(asked: Ask) -> dict[str, Any]:
    """The tasks by name, those of groups among them, with their questions."""
    found: dict[str, Any] = _manager().load(list(asked.tasks))["tasks"]
    return found


@contextlib.contextmanager
def _without_git() -> Iterator[None]:
    """Keep lm-eval from asking for a commit of the working directory: git complains where there is none."""
    from lm_eval import evaluator

    asks = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: ""
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asks


@contextlib.contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    """Data sets found under their Hub names in the working directory are used instead of the Hub's."""
    if folder is None:
        yield
        return
    with contextlib.chdir(folder):
        yield
