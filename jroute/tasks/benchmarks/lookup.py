"""Tasks of lm-eval by name: where their definitions are, and their loading.

lm-eval parses all of its many thousand YAML files to find a name, which takes long. Here a plain
task is found by its name in their text; only groups, tags and patterns need lm-eval's index.
"""

import difflib
import functools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from jroute.utils.errors import UserError

OFFICIAL = Path(lm_eval.tasks.__file__).parent
"""Where lm-eval keeps its tasks."""

SHIPPED = Path(__file__).with_name("shipped")
"""Where the tasks of this package are."""

_NAME = r"""["']?(?P<name>%s)["']?[ \t]*(?:\#.*)?$"""
_TASK = re.compile(r"^task:[ \t]*" + _NAME % r"[\w.-]+", re.MULTILINE)
_GROUP = re.compile(r"^group:[ \t]*" + _NAME % r"[\w.-]+", re.MULTILINE)


_DEEPEST = 50  # groups within groups


def find_tasks(
    names: Sequence[str],
    include: str | Path | None = None,
    metadata: dict[str, Any] | None = None,
) -> tuple[list[str], TaskManager]:
    """Return where tasks of these names are, and a manager that loads them.

    Tasks of ``include`` come before those of this package, and these before lm-eval's own.

    Args:
        names: Names of tasks, groups or tags; patterns with ``*``; or paths of YAML files.
        include: Another folder with tasks, as lm-eval's ``--include_path``.
        metadata: What lm-eval hands to tasks, as its ``--metadata``.

    Returns:
        Paths of YAML files, or names for lm-eval's index; and the manager.

    Raises:
        UserError: There is no such task.
    """
    if include is not None and not Path(include).is_dir():
        raise UserError(f"--include_path: there is no folder {include}")
    folders = [SHIPPED, *([Path(include).absolute()] if include is not None else [])]
    definitions = _Definitions.read([OFFICIAL, *folders])
    specs = [definitions.locate(name) for name in names]
    for spec in specs:
        definitions.check_group(spec)
    if all(map(_is_file, specs)) and not any(map(_is_group, specs)):
        return specs, TaskManager(include_defaults=False, metadata=metadata)
    manager = TaskManager(include_path=list(map(str, folders)), metadata=metadata)
    return _match(specs, manager), manager


def load_tasks(manager: TaskManager, specs: Sequence[Any]) -> list[Any]:
    """Return the tasks and groups of these names, files or definitions, with their data.

    A group holds its tasks and groups; a tag is just the tasks that have it.
    """
    loaded: list[Any] = []
    for spec in specs:
        content = manager.load([spec])
        groups = content.get("groups", {})
        inner = {name for children in content.get("group_map", {}).values() for name in children}
        loaded += [group for name, group in groups.items() if name not in inner]
        loaded += [task for name, task in content["tasks"].items() if name not in inner]
    return loaded


@dataclass(frozen=True)
class _Definitions:
    """The texts of task files, and the files that define each task.

    Attributes:
        texts: Content by file.
        files: Files by name of the task.
        groups: The file by name of the group.
    """

    texts: dict[Path, str]
    files: dict[str, list[Path]]
    groups: dict[str, Path]

    @classmethod
    def read(cls, folders: Iterable[Path]) -> "_Definitions":
        """Read task files; a later folder wins over an earlier one, as it does in lm-eval."""
        texts: dict[Path, str] = {}
        files: dict[str, list[Path]] = {}
        groups: dict[str, Path] = {}
        for folder in folders:
            in_folder: dict[str, list[Path]] = {}
            groups_in_folder: dict[str, Path] = {}
            texts_in_folder = _official_texts() if folder == OFFICIAL else _texts(folder)
            for file, text in texts_in_folder.items():
                for match in _TASK.finditer(text):
                    in_folder.setdefault(match["name"], []).append(file.absolute())
                for match in _GROUP.finditer(text):
                    groups_in_folder.setdefault(match["name"], file.absolute())
            texts |= texts_in_folder
            files |= in_folder
            groups |= groups_in_folder
        return cls(texts, files, groups)

    def locate(self, name: str) -> str:
        """Return the file of a task, or its name where lm-eval's index is needed.

        Raises:
            UserError: There is no such task.
        """
        if _is_file(name):
            if not os.path.isfile(name):  # unlike Path.is_file, no path makes it raise
                raise UserError(f"there is no task file {name}; check the path")
            return str(Path(name).absolute())
        files = self.files.get(name, [])
        if not files and "*" not in name and not self._mentions(name):
            near = difflib.get_close_matches(name, list(self.files), n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else "see lm-eval ls tasks"
            raise UserError(f"lm-eval has no task named {name!r}; {hint}")
        return str(files[0]) if len(files) == 1 else name

    def check_group(self, spec: str) -> None:
        """Refuse a group that contains itself, which lm-eval would load without an end.

        Args:
            spec: Name of a group, or its file; anything else is left to lm-eval.

        Raises:
            UserError: The group, or one within it, contains itself.
        """
        within: list[str] = []  # groups that are open
        whole: set[str] = set()

        def check(group: str) -> None:
            if group in within:
                path = " > ".join([*within[within.index(group) :], group])
                raise UserError(
                    f"{self.groups[group]}: the group {group:.60} contains itself ({path:.200}); "
                    "remove it from its field task"
                )
            if group in whole or group not in self.groups or group in self.files:
                return
            if len(within) == _DEEPEST:
                raise UserError(f"{self.groups[group]}: groups nest deeper than {_DEEPEST} levels")
            within.append(group)
            for name in _members(_parse(self.groups[group]).get("task")):
                check(name)
            whole.add(within.pop())

        content = _parse(Path(spec)) if _is_file(spec) else {"group": spec}
        name = content.get("group")
        if isinstance(name, str) and name in self.groups:
            check(name)

    def _mentions(self, name: str) -> bool:
        """Return whether any file lists a group or tag of this name."""
        listed = re.compile(r"^[ \t-]*((tag|group):[ \t]*)?" + _NAME % re.escape(name), re.M)
        return any(name in text and listed.search(text) for text in self.texts.values())


def _match(specs: Sequence[str], manager: TaskManager) -> list[str]:
    """Return specs with patterns replaced by the tasks that they match."""
    matches: dict[str, None] = {}
    for spec in specs:
        matched = [spec] if _is_file(spec) else manager.match_tasks([spec])
        if not matched:
            raise UserError(f"lm-eval has no task named {spec!r}; see lm-eval ls tasks")
        matches.update(dict.fromkeys(matched))
    return list(matches)


def _is_file(spec: str) -> bool:
    return Path(spec).suffix == ".yaml"


def _is_group(file: str) -> bool:
    """Return whether a file defines a group, whose members are found in lm-eval's index."""
    text = Path(file).read_text(encoding="utf-8", errors="replace")
    return bool(re.search("^group:", text, re.MULTILINE))


def _members(task: Any) -> list[str]:
    """Return the names that the field ``task`` of a group lists, at any depth of it."""
    names: dict[str, None] = {}
    seen: set[int] = set()  # an alias of YAML may stand inside its own anchor
    left = [task]
    while left:
        member = left.pop()
        if isinstance(member, str):
            names[member] = None
        elif id(member) not in seen and isinstance(member, list | dict):
            seen.add(id(member))
            inner = (
                [member.get("group"), member.get("task")] if isinstance(member, dict) else member
            )
            left.extend(reversed(inner))
    return list(names)


def _parse(file: Path) -> dict[str, Any]:
    """Return the content of a task file; that of a broken one is empty, and lm-eval refuses it."""
    try:
        return load_yaml(file, resolve_func=False)
    except Exception:
        return {}


def _texts(root: Path) -> dict[Path, str]:
    """Read the YAML files below a folder; their names are searched for, whatever else they hold."""
    return {
        file: file.read_text(encoding="utf-8", errors="replace")
        for file in sorted(root.rglob("*.yaml"))
        if os.access(file, os.R_OK) and file.is_file()
    }


@functools.cache
def _official_texts() -> dict[Path, str]:
    return _texts(OFFICIAL)
