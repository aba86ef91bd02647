"""Runs commands in forks of one process that has everything imported, so that thousands can run.

The parent starts the server with ``Worker()``; the server forks a guard for every command, and the
guard forks the command itself, measures it and writes down how it ended.
"""

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

IMPORTS = (
    "jroute.experiment.pipeline",
    "jroute.experiment.calibration_runs",
    "jroute.ablate.ablation_run",
    "jroute.probe.plots",
    "jroute.report.page",
    "jroute.harness.command",
    "jroute.checkpoint.export",
    "pyarrow.parquet",
    "matplotlib.figure",
)

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "campaign"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Exit status; negative is the signal that killed it.
        stdout: What it printed.
        stderr: What it printed to standard error.
        seconds: Wall time.
        megabytes: Memory that it took beyond that of the server.
        renames: How many files and folders it renamed.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    megabytes: float
    renames: int

    @property
    def killed(self) -> bool:
        """Return whether it was killed, as intended."""
        return self.status == -signal.SIGKILL

    @property
    def traceback(self) -> bool:
        """Return whether an exception reached the user."""
        return "Traceback (most recent call last)" in self.stderr

    @property
    def message(self) -> str:
        """Return its last words."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Running:
    """A command that has been started."""

    def __init__(self, notes: Path):
        """Wait until the command has a process."""
        self.notes = notes
        self.process = int(_wait_for(notes / "process", 600))  # imports come first

    def kill(self) -> None:
        """Kill it as the kernel kills: at once."""
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    @property
    def running(self) -> bool:
        """Return whether it has not ended yet."""
        return not (self.notes / "ended").exists()

    def wait_or_kill(self, seconds: float) -> None:
        """Wait until it ends, and kill it if it has not ended in time."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            time.sleep(0.002)
        if self.running:
            self.kill()

    def wait(self, timeout: float = 600) -> Ended:
        """Return how it ended; kill it after ``timeout`` seconds."""
        try:
            ended = json.loads(_wait_for(self.notes / "ended", timeout))
        except TimeoutError:
            self.kill()
            ended = json.loads(_wait_for(self.notes / "ended", 60))
            ended["seconds"] = timeout
        texts = {
            name: (self.notes / name).read_text(errors="replace") for name in ("stdout", "stderr")
        }
        renames = self.notes / "renames"
        count = len(renames.read_bytes()) if renames.exists() else 0
        return Ended(**ended, **texts, renames=count)


class Worker:
    """A server that runs commands; use it as a context manager."""

    def __init__(self) -> None:
        """Start the server; it imports jroute while the caller goes on."""
        self._notes = tempfile.TemporaryDirectory(prefix="campaign-")
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.worker"],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        self._notes.cleanup()

    def start(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        kill_at_rename: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command.

        Args:
            argv: A module or a script, and its options.
            folder: Where it runs.
            kill_at_rename: Kill it just before its n-th rename, counted from 1; 0 is never.
            environment: Variables to set.
        """
        notes = Path(self._notes.name) / str(self._count)
        self._count += 1
        notes.mkdir()
        order = {
            "argv": list(argv),
            "folder": str(folder),
            "notes": str(notes),
            "kill_at_rename": kill_at_rename,
            "environment": dict(environment or {}),
        }
        assert self._server.stdin is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return Running(notes)

    def run(self, argv: Sequence[str], folder: Path, **options: Any) -> Ended:
        """Run a command to its end; arguments as for ``start``."""
        return self.start(argv, folder, **options).wait()


def _wait_for(file: Path, timeout: float) -> str:
    end = time.monotonic() + timeout
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"no {file.name} after {timeout} s")
        time.sleep(0.005)
    return file.read_text()


def _note(file: Path, text: str) -> None:
    partial = file.with_suffix(".new")
    partial.write_text(text)
    os.link(partial, file)  # not a rename: those are counted


def _guard(order: Mapping[str, Any]) -> None:
    """Run one command in a child, and note how it ended."""
    notes = Path(order["notes"])
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        _command(order, notes)
    _note(notes / "process", str(process))
    _, state, usage = os.wait4(process, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = os.waitstatus_to_exitcode(state)
    ended = {
        "status": status,
        "seconds": time.monotonic() - began,
        "megabytes": (usage.ru_maxrss - before) / 1024,
    }
    _note(notes / "ended", json.dumps(ended))


def _command(order: Mapping[str, Any], notes: Path) -> None:
    """Become the command, and never return."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(notes / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    _count_renames(notes / "renames", order["kill_at_rename"])
    name, *options = order["argv"]
    sys.argv = [name, *options]
    status: int | str | None = 0
    try:
        if name.endswith(".py"):
            sys.path.insert(0, str(ROOT / "scripts"))
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    # A normal end, with the hooks of libraries that write in threads.
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _count_renames(file: Path, kill_at: int) -> None:
    """Count the renames of this process, and kill it before one of them."""
    count = 0
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def counted(original: Any) -> Any:
        def rename(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(descriptor, b".")
            return original(*args, **options)

        return rename

    for name in ("rename", "replace", "link", "unlink", "remove", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def _serve() -> None:
    import importlib

    for name in IMPORTS:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for line in sys.stdin:
        if os.fork() == 0:
            if os.fork() == 0:  # the guard belongs to nobody, so that the server never waits
                _guard(json.loads(line))
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    _serve()
