"""Start one program as several processes that share a mesh; end all of them when one dies.

    python -m jroute.launch --processes 2 -- python -m jroute.outcomes --config FILE --mesh.data 2

Every process runs the same command and finds the others through
``jroute.distributed.processes.join_processes``. Each line of output is prefixed with the number of
its process. On several machines give the same command on each of them, with ``--coordinator``,
``--nodes`` and another ``--node-rank``; under Slurm let ``srun`` start the processes instead (see
``configs/launch``).
"""

import argparse
import ctypes
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, NamedTuple

from jroute.distributed.processes import COORDINATOR, DEFAULT_TIMEOUT, PROCESS, PROCESSES, TIMEOUT
from jroute.utils.cli import command
from jroute.utils.errors import UserError


class Death(NamedTuple):
    """The end of a process: its number, its id, and its status as ``subprocess`` gives it."""

    process: int
    pid: int
    status: int


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes and wait; exit with the status of the first that fails."""
    arguments = _parser().parse_args(argv)
    program = arguments.command[arguments.command[:1] == ["--"] :]
    _check(arguments, program)

    def report(death: Death) -> None:
        consequence = f"ending the others within {arguments.timeout} seconds"
        print(f"{_describe(death, arguments)}; {consequence}", file=sys.stderr, flush=True)

    death = run(program, _environments(arguments), timeout=arguments.timeout, died=report)
    if death:
        sentence = f"{_describe(death, arguments)} and all others were ended; {_advice(death)}"
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(death.status if death.status > 0 else 128 - death.status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jroute.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--processes", type=int, required=True, help="processes to start on this machine"
    )
    parser.add_argument(
        "--devices-per-process",
        type=int,
        default=1,
        help="GPUs of each process, or host devices on a machine without GPUs (default: 1)",
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=DEFAULT_TIMEOUT,
        help="seconds the others have to end after one died (default: %(default)s)",
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this one, from 0")
    parser.add_argument("--coordinator", help="host:port of machine 0; needed with --nodes")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    return parser


def _environments(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Return the environment variables of each process."""
    coordinator = arguments.coordinator or f"127.0.0.1:{_free_port()}"
    shared = {
        COORDINATOR: coordinator,
        PROCESSES: str(arguments.processes * arguments.nodes),
        TIMEOUT: str(arguments.timeout),
        "JAX_NUM_CPU_DEVICES": str(arguments.devices_per_process),
    }
    if arguments.nodes == 1:  # nobody outside this machine may connect
        shared["JAX_COORDINATOR_BIND_ADDRESS"] = coordinator
    environments = []
    for i in range(arguments.processes):
        first = i * arguments.devices_per_process
        devices = ",".join(map(str, range(first, first + arguments.devices_per_process)))
        number = str(arguments.node_rank * arguments.processes + i)
        environments.append({**shared, PROCESS: number, "JAX_LOCAL_DEVICE_IDS": devices})
    return environments


def _check(arguments: argparse.Namespace, program: list[str]) -> None:
    if not program:
        raise UserError("there is no command to start; give it at the end, after --")
    for name in ("processes", "devices_per_process", "timeout", "nodes"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= arguments.node_rank < arguments.nodes:
        raise UserError(
            f"--node-rank is {arguments.node_rank}; with --nodes {arguments.nodes} it is a number "
            f"from 0 to {arguments.nodes - 1}"
        )
    if arguments.nodes > 1 and ":" not in (arguments.coordinator or ""):
        raise UserError(
            "several machines meet at one address; give --coordinator HOST:PORT of machine 0, "
            "the same on all of them"
        )


def run(
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
    *,
    timeout: float,
    died: Callable[[Death], None],
) -> Death | None:
    """Run one process per environment until all have succeeded or one has not.

    When one fails, or this process is interrupted, the others receive SIGTERM, and after
    ``timeout`` seconds SIGKILL. When this process is killed, so are they.

    Args:
        command: The program and its arguments.
        environments: Variables of each process, added to those of this one.
        timeout: Seconds that the others have to end.
        died: Called with the first process that failed, before the others are ended.

    Returns:
        The first process that failed.

    Raises:
        UserError: The command cannot be started.
    """
    deaths: queue.Queue[Death] = queue.Queue()
    children: list[subprocess.Popen[bytes]] = []
    printing: list[threading.Thread] = []

    def watch(i: int, child: subprocess.Popen[bytes]) -> None:
        deaths.put(Death(int(environments[i][PROCESS]), child.pid, child.wait()))

    try:
        for environment in environments:
            children.append(_start(command, environment))
        for i, child in enumerate(children):
            mark = f"[{environments[i][PROCESS]}] ".encode()
            for stream, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                printing.append(threading.Thread(target=_pass_on, args=(stream, target, mark)))
            threading.Thread(target=watch, args=(i, child), daemon=True).start()
        for thread in printing:
            thread.daemon = True
            thread.start()
        for _ in children:
            death = deaths.get()
            if death.status:
                died(death)
                return death
        return None
    finally:
        _end(children, timeout)
        for thread in printing:
            thread.join(timeout=2)  # a grandchild may hold its output open


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the launcher, which ends them in order
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    except OSError as error:
        raise UserError(
            f"cannot start {command[0]!r} ({error.strerror}); is the command right?"
        ) from None


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def _die_with_parent() -> None:
    assert _libc is not None
    _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


_LINE_ENDS = re.compile(rb"(?<=\n)|(?<=\r)(?!\n)")  # a progress bar ends its lines with \r


def _pass_on(stream: IO[bytes], target: IO[str], mark: bytes) -> None:
    """Copy a stream line by line, each behind ``mark``."""
    incomplete = b""
    while chunk := os.read(stream.fileno(), 2**16):
        *lines, incomplete = _LINE_ENDS.split(incomplete + chunk)
        _write(target, [mark + line for line in lines])
    _write(target, [mark + incomplete + b"\n"] if incomplete else [])


def _write(target: IO[str], lines: list[bytes]) -> None:
    for line in lines:
        target.buffer.write(line)  # type: ignore[attr-defined]
    target.flush()


def _end(children: Sequence[subprocess.Popen[bytes]], timeout: float) -> None:
    """End processes and what they started; a second interrupt ends them immediately."""
    try:
        for child in children:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        for child in children:
            child.wait(max(deadline - time.monotonic(), 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        for child in children:
            _signal(child, signal.SIGKILL)
            child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _describe(death: Death, arguments: argparse.Namespace) -> str:
    how = f"ended with status {death.status}"
    if death.status < 0:
        how = f"was killed by {signal.Signals(-death.status).name}"
    total = arguments.processes * arguments.nodes
    return f"process {death.process} of {total} (pid {death.pid}, {socket.gethostname()}) {how}"


def _advice(death: Death) -> str:
    if death.status == -signal.SIGKILL:
        return (
            "if nobody killed it, the machine ran out of memory (dmesg says so): lower what one "
            "process holds, then give the same command again"
        )
    if death.status == -signal.SIGABRT:
        return (
            "JAX aborts a process that has heard nothing of another for --timeout seconds: the one "
            "whose lines above stop first hung; then give the same command again"
        )
    return (
        f"its last lines above, marked [{death.process}], say why; then give the same command again"
    )
