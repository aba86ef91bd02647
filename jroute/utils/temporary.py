"""Temporary files and folders, named after the process that writes them.

A killed process leaves them behind. ``remove_leftovers`` takes them away, under the names of today
and of earlier versions, wherever a command begins to write:

===============================  ==============================================================
of a process of this machine     if it has ended; its start in the name tells it from a later
                                 process with the same number
of another machine or container  if nothing in it has changed for a day
of lm-eval, by earlier versions  if no command is running that may have made it
of Orbax                         if the caller is the only one to write the folder, or for a day
                                 nothing in it has changed
===============================  ==============================================================
"""

import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

HIDDEN = ".{name}.{host}.{process}.tmp"
"""Name of a file that is not complete, or of a folder that never gets another name.

The leading dot hides it from readers of Parquet folders.
"""

PARTIAL = "{name}.partial-{host}-{process}"
"""Name of a folder that is renamed when it is complete."""

REPLACED = PARTIAL + ".replaced"
"""Name of an earlier folder while a new one takes its place."""

QUIET_SECONDS = 24 * 3600
"""How long nothing may have changed in what another machine made before it counts as abandoned."""

_OWNER = r"(?P<process>\d+)(?:-(?P<start>\d+)-(?P<space>\d+))?"
_HOST = r"(?P<host>[^/]+?)"
_EARLIER = re.compile(r"\.(?P<name>.+)\.partial-(?P<process>\d+)")  # a file
_LM_EVAL = re.compile(r"\.(?P<name>[\w.=,+-]+)-[a-z0-9_]{8}")  # in a run's folder of that name
_LM_EVAL_FILE = re.compile(r"(results|samples|gates)_.+\.jsonl?")
_ORBAX = re.compile(r"(?P<name>.+)\.orbax-checkpoint-tmp.*")
_CLOCK_STEP = 60  # seconds that the clock may have been set forward
_FILE_SYSTEM_LIMIT = 255
_MAX_NAME = 120


class Owner(NamedTuple):
    """The process that a temporary name belongs to.

    Attributes:
        host: Its machine; this one if ``None``.
        process: Its number.
        start: When it was started, in clock ticks since the machine started; unknown if ``None``.
        space: Its namespace of process numbers, which differs between containers.
    """

    host: str | None = None
    process: int | None = None
    start: int | None = None
    space: int | None = None

    def lives(self, path: Path) -> bool:
        """Return whether the process may still write ``path``."""
        elsewhere = self.space is not None and self.space != _namespace()
        if elsewhere or self.host not in (None, platform.node()):
            return _changed_lately(path)
        if self.process is None:
            return True
        start = start_of(self.process)
        if start is None:
            return False
        if self.start is not None:
            return start in (0, self.start)
        return _seconds_since_epoch(start) <= _newest_change(path) + _CLOCK_STEP


def temporary_path(path: Path, form: str) -> Path:
    """Return the path beside ``path`` that belongs to this process.

    Args:
        path: Where the content goes in the end.
        form: ``HIDDEN``, ``PARTIAL`` or ``REPLACED``.
    """
    process = f"{os.getpid()}-{start_of(os.getpid())}-{_namespace()}"
    name = form.format(name=_short(path.name), host=platform.node(), process=process)
    return path.with_name(name)


def _short(name: str) -> str:
    """Return a name that leaves room for the process's."""
    if len(os.fsencode(name)) <= _MAX_NAME or len(os.fsencode(name)) > _FILE_SYSTEM_LIMIT:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return os.fsdecode(os.fsencode(name)[: _MAX_NAME - 17]) + f"-{digest}"


def leftovers(
    folder: Path, name: str | None = None, *forms: str, alone: bool = False
) -> list[Path]:
    """Return temporary paths whose processes have ended, in order.

    Args:
        folder: Folder to look in; it need not exist. Without a name it must be jroute's own: in
            any other only what is for a certain name may be touched.
        name: Final name of what they are for; any if ``None``.
        *forms: ``HIDDEN``, ``PARTIAL`` or ``REPLACED``; by default all, and those of earlier
            versions and of Orbax.
        alone: Whether no other process writes the folder (a lock says so).
    """
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return []
    patterns = [_pattern(form) for form in forms or (REPLACED, PARTIAL, HIDDEN)]
    patterns += [] if forms else [_EARLIER]
    if name is None and not forms:  # the folder is jroute's own
        patterns += [_ORBAX, *([_LM_EVAL] if _is_lm_eval_of_a_run(folder) else [])]
    paths = []
    for entry in entries:
        match = next(filter(None, (pattern.fullmatch(entry) for pattern in patterns)), None)
        if match is None or (name is not None and match["name"] != _short(name)):
            continue
        path = folder / entry
        if match.re is _ORBAX:
            lives = not alone and _changed_lately(path)
        elif match.re is _LM_EVAL:
            lives = not _holds_lm_eval_files(path) or _an_lm_eval_may_write(path)
        else:
            lives = _owner(match).lives(path)
        if not lives:
            paths.append(path)
    return paths


@cache
def _pattern(form: str) -> re.Pattern[str]:
    return re.compile(
        form.replace(".", r"\.").format(name=r"(?P<name>.+)", host=_HOST, process=_OWNER)
    )


def _owner(match: re.Match[str]) -> Owner:
    groups = match.groupdict()
    numbers = (groups.get(key) for key in ("process", "start", "space"))
    return Owner(groups.get("host"), *(None if n is None else int(n) for n in numbers))


def remove_leftovers(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Take away what processes that have ended left in a folder.

    An earlier folder that was set aside and not yet replaced gets its name back.

    Args:
        folder: The folder; it need not exist. Without a name it must be jroute's own.
        name: Only what was for this final name.
        alone: Whether no other process writes the folder (a lock says so).
    """
    set_aside = leftovers(folder, name, REPLACED)
    for path in set_aside:
        _put_back(path)
    for path in leftovers(folder, name, alone=alone):
        if path not in set_aside:
            remove(path)


def _put_back(earlier: Path) -> None:
    """Give a folder that was set aside its name again, or delete it if a newer model has it."""
    match = _pattern(REPLACED).fullmatch(earlier.name)
    assert match is not None
    folder = earlier.with_name(match["name"])
    with suppress(OSError):
        if (folder / "manifest.json").is_file():
            remove(earlier)
        elif not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
            os.rename(earlier, folder)


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds, as far as the system allows."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path``, and delete it at the end.

    Those that killed processes left for the same path are deleted first.
    """
    remove_leftovers(path.parent, path.name)
    folder = temporary_path(path, HIDDEN)
    remove(folder)  # of this process, which was interrupted when it wrote there
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_running(process: int) -> bool:
    """Return whether a process with this number runs on this machine."""
    return start_of(process) is not None


# Processes ----------------------------------------------------------------------------------------


def start_of(process: int) -> int | None:
    """Return when a process of this machine was started; ``None`` if there is none.

    It is in clock ticks since the machine started, and 0 where the system does not tell (it has no
    ``/proc``) or does not show it.
    """
    try:
        os.kill(process, 0)  # signal 0 only checks
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # it belongs to another user
        pass
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie writes nothing any more


def _seconds_since_epoch(start: int) -> float:
    """Return the time of ``start_of`` by the clock that dates files; 0 if it is not known."""
    if not start:
        return 0.0
    machine = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return machine + start / os.sysconf("SC_CLK_TCK")


@cache
def _namespace() -> int:
    """Return the number of this process's namespace of process numbers; 0 if there is none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _newest_change(path: Path) -> float:
    """Return when a file, or anything in a folder, last changed."""
    newest = 0.0
    for each in (path, *_contents(path)):
        with suppress(OSError):
            newest = max(newest, each.lstat().st_mtime)
    return newest


def _contents(folder: Path) -> Iterator[Path]:
    """Yield all files and folders in a folder, as far as its process lets them stand meanwhile."""
    for place, folders, files in os.walk(folder):  # ``rglob`` raises where one has gone
        yield from (Path(place) / name for name in (*folders, *files))


def _changed_lately(path: Path) -> bool:
    return time.time() - _newest_change(path) < QUIET_SECONDS


def _is_lm_eval_of_a_run(folder: Path) -> bool:
    return folder.name == "lm_eval" and (folder.parent / "config.yaml").is_file()


def _holds_lm_eval_files(path: Path) -> bool:
    """Return whether a folder holds nothing but files that lm-eval and jroute write there."""
    files = [each for each in _contents(path) if not each.is_dir()]
    return path.is_dir() and all(_LM_EVAL_FILE.fullmatch(file.name) for file in files)


def _an_lm_eval_may_write(path: Path) -> bool:
    """Return whether another ``lm_eval_jax.py`` of this machine may have made ``path``."""
    changed = _newest_change(path)
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        with suppress(OSError):
            if process == os.getpid() or b"lm_eval_jax" not in (folder / "cmdline").read_bytes():
                continue
            start = start_of(process)
            if start is not None and _seconds_since_epoch(start) <= changed + _CLOCK_STEP:
                return True
    return False
