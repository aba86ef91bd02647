"""The client's end of the pipe: start a side's worker, send it commands, end it."""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jroute.utils.errors import UserError

HERE = Path(__file__).parent

CLEAN = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "JAX_PLATFORMS": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
"""No compiled program comes from a disk, no library reaches for a network, and on a GPU no side
takes the memory of the others."""

NOT_INHERITED = ("JAX_", "XLA_", "OMP_", "MKL_", "PYTHON")
"""Settings of the caller's shell that would favour or hinder one side."""


class SideFailed(Exception):
    """A worker answered with an error, ended, or did not answer in time."""


class Worker:
    """One side's process; between questions it waits in a read.

    Attributes:
        name: Of the side.
        command: Of the process.
        started: ``time.perf_counter()`` when it was started.
    """

    def __init__(
        self,
        name: str,
        python: str | Path,
        script: str | Path,
        log: Path,
        *,
        threads: int,
        environment: Mapping[str, str] | None = None,
    ):
        self.name = name
        self.command = [str(python), str(HERE / script)]
        self._log = log
        kept = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
        pools = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.started = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**kept, **CLEAN, **pools, **(environment or {})},
                process_group=0,
            )
        # XLA takes as many threads as cores it may run on, so those are what is limited; long
        # before the interpreter is up.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(self._process.pid, cores)

    def ask(self, do: str, *, timeout: float = 600, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer.

        Raises:
            SideFailed: The worker reported an error, ended, or took more than ``timeout`` seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._line(timeout))
        except (BrokenPipeError, ValueError):
            raise SideFailed(f"{self.name} ended at {do!r}: {self.last_words()}") from None
        if "error" in answer:
            raise SideFailed(f"{self.name} failed at {do!r}: {answer['error']}")
        return answer

    def _line(self, timeout: float) -> bytes:
        """Return the next line that the worker writes, or what it wrote of it before it ended."""
        assert self._process.stdout is not None
        end, line = time.monotonic() + timeout, bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    self._process.kill()
                    self.close()
                    raise SideFailed(f"{self.name} gave no answer within {timeout:g} s")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    break
                line += part
        return bytes(line)

    def cpu_seconds(self) -> float:
        """Return the processor time of all its threads so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def last_words(self) -> str:
        """Return the end of what it wrote to standard error."""
        return self._log.read_text(errors="replace")[-2000:].strip()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        with contextlib.suppress(BrokenPipeError):
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interpreter(environment: Path) -> Path:
    """Return the Python of a virtual environment."""
    return environment / "bin" / "python"


def make_environment(folder: Path, requirements: Sequence[str], pythons: Sequence[str]) -> None:
    """Make a virtual environment and install into it; leave a complete environment alone.

    Args:
        folder: Of the environment.
        requirements: What pip installs.
        pythons: Interpreters to try, in order; the first that runs and is new enough is taken.

    Raises:
        UserError: No interpreter is new enough, or pip failed.
    """
    stamp = folder / "requirements.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == list(requirements):
        return
    python = next((each for each in pythons if _runs(each)), None)
    if python is None:
        raise UserError(f"none of {', '.join(pythons)} runs; name an interpreter with --python")
    pip = [str(interpreter(folder)), "-m", "pip", "install", *requirements]
    for command in ([python, "-m", "venv", "--clear", str(folder)], pip):
        print("+", *command, flush=True)
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"{' '.join(command)} failed; see above")
    stamp.write_text(json.dumps(list(requirements)) + "\n")


def _runs(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0
    except OSError:
        return False
