"""Write results of several files, and end before the n-th change of the disk as SIGKILL would.

Every folder of the command line is written by a process of its own, the n-th of them ends before
the n-th change. The status of each is printed.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jroute.utils.together import written_together

left = 0


def counted(call: Callable[..., Any]) -> Callable[..., Any]:
    """End the process instead of the n-th call."""

    def change(*arguments: Any, **options: Any) -> Any:
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return call(*arguments, **options)

    return change


def write(folder: Path) -> None:
    (folder / "results.json").write_text("new")
    (folder / "figures").mkdir()
    (folder / "figures" / "a.svg").write_text("new")
    (folder / "items.parquet").write_text("new")


for module, name in (
    (os, "rename"),
    (os, "replace"),
    (os, "mkdir"),
    (os, "fsync"),
    (os, "rmdir"),
    (os, "unlink"),
    (shutil, "rmtree"),
):
    setattr(module, name, counted(getattr(module, name)))

for n, folder in enumerate(map(Path, sys.argv[1:])):
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    left = n
    with written_together(folder, "results") as scratch:
        write(scratch)
    os._exit(0)
