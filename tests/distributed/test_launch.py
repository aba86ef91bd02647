"""Several processes: they start together, work on one mesh, and end together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jroute.checkpoint import save_model
from jroute.distributed.launch import main
from jroute.model.params import abstract_params
from tests.distributed.decoder import CONFIG, LARGE, greedy, host_inputs, logits, parameters

ROOT = Path(__file__).parent.parent.parent


def launch(*arguments: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jroute.launch", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def python(program: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", program)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, f"one of {pids} is still there"
        time.sleep(0.05)


SLEEPER = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('pid', os.getpid(), flush=True); time.sleep(600)"
)


def pids_of(launcher: subprocess.Popen[str], count: int) -> list[int]:
    """Waits until so many processes have told their ids, in the order of their numbers."""
    pids = {}
    assert launcher.stdout
    while len(pids) < count:
        line = launcher.stdout.readline()
        assert line, launcher.stderr and launcher.stderr.read()
        if match := re.match(r"\[(\d)\] pid (\d+)", line):
            pids[int(match[1])] = int(match[2])
    return [pids[i] for i in range(count)]


def test_all_succeed() -> None:
    program = (
        "import os, sys; e = os.environ; print(e['JROUTE_PROCESS'], 'of', e['JROUTE_PROCESSES'],"
        "e['JAX_NUM_CPU_DEVICES'], e['JAX_LOCAL_DEVICE_IDS'], e['JROUTE_TIMEOUT']);"
        "print('10%\\r20%', file=sys.stderr, end='')"
    )
    launcher = launch(
        *("--processes", "2", "--devices-per-process", "4", "--timeout", "7"),
        *("--nodes", "2", "--node-rank", "1", "--coordinator", "host:123"),
        *python(program),
    )
    out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 0
    assert sorted(out.splitlines()) == ["[2] 2 of 4 4 0,1,2,3 7", "[3] 3 of 4 4 4,5,6,7 7"]
    assert sorted(err.splitlines()) == ["[2] 10%", "[2] 20%", "[3] 10%", "[3] 20%"]


def test_one_that_fails_ends_the_others_even_those_that_would_not() -> None:
    program = f"import os\nif os.environ['JROUTE_PROCESS'] == '1': print('oh'); exit(3)\n{SLEEPER}"
    launcher = launch("--processes", "3", "--timeout", "1", *python(program))
    out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 3
    assert "[1] oh" in out.splitlines()
    first, last = err.splitlines()
    what = rf"process 1 of 3 \(pid \d+, {re.escape(socket.gethostname())}\) ended with status 3"
    assert re.fullmatch(rf"{what}; ending the others within 1 seconds", first)
    assert re.fullmatch(
        rf"error: {what} and all others were ended; its last lines above, marked \[1\], "
        "say why; then give the same command again",
        last,
    )
    wait_until_gone([int(pid) for pid in re.findall(r"pid (\d+)", out)], 0)


def test_an_interrupt_ends_all() -> None:
    launcher = launch("--processes", "2", "--timeout", "1", *python(SLEEPER))
    pids = pids_of(launcher, 2)
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=300)
    assert (launcher.returncode, err) == (130, "error: interrupted; all processes were ended\n")
    wait_until_gone(pids, 0)


def test_a_killed_launcher_takes_all_with_it() -> None:
    launcher = launch("--processes", "2", *python(SLEEPER))
    pids = pids_of(launcher, 2)
    launcher.kill()
    wait_until_gone(pids, 10)
    launcher.communicate(timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "2"], "no command to start; give it at the end, after --"),
        (["--processes", "0", "--", "true"], "--processes must be at least 1"),
        (["--processes", "1", "--timeout", "0", "--", "true"], "--timeout must be at least 1"),
        (
            ["--processes", "1", "--nodes", "2", "--node-rank", "2", "--", "true"],
            "--node-rank is 2; with --nodes 2 it is a number from 0 to 1",
        ),
        (["--processes", "1", "--nodes", "2", "--", "true"], "give --coordinator HOST:PORT"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_command_that_does_not_exist_is_told() -> None:
    launcher = launch("--processes", "2", "--", "no-such-command")
    _, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 2
    assert err.startswith("error: cannot start 'no-such-command' (No such file or directory)")


def test_variables_that_make_no_sense_are_told() -> None:
    program = "from jroute.distributed.processes import join_processes; join_processes()"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JROUTE_COORDINATOR": "127.0.0.1:1", "JROUTE_PROCESSES": "two"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        "UserError: the environment of several processes is incomplete or wrong" in finished.stderr
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "model", parameters(), CONFIG)
    halves = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, "f4"), abstract_params(LARGE))
    save_model(folder / "large", halves, LARGE)
    return folder / "model", folder / "large"


def test_two_processes_compute_what_one_does_and_one_that_is_killed_ends_both(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    model, large = models
    launcher = launch(
        *("--processes", "2", "--devices-per-process", "4", "--timeout", "600", "--"),
        *(sys.executable, "-m", "tests.distributed.worker", str(model), str(large), str(tmp_path)),
    )
    pids = pids_of(launcher, 2)  # both have written their results and go on decoding
    os.kill(pids[1], signal.SIGKILL)
    _, err = launcher.communicate(timeout=300)  # they end on SIGTERM, long before their timeout
    wait_until_gone(pids, 0)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert re.fullmatch(
        rf"error: process 1 of 2 \(pid {pids[1]}, .*\) was killed by SIGKILL and all others were "
        r"ended; if nobody killed it, the machine ran out of memory \(dmesg says so\): lower what "
        "one process holds, then give the same command again",
        err.splitlines()[-1],
    )
    real = host_inputs().lengths > 0
    stored = sum(file.stat().st_size for file in (large / "params").rglob("*") if file.is_file())
    for process in range(2):
        saved = np.load(tmp_path / f"{process}.npz")
        assert saved["devices"] == 8
        assert saved["read"] < 0.6 * stored, "each process reads only its part"
        for routed in (False, True):
            name = "routed" if routed else "plain"
            expected = logits(parameters(), None, routed=routed)
            np.testing.assert_allclose(saved[f"{name}_logits"][real], expected[real], atol=1e-5)
            tokens = greedy(parameters(), None, routed=routed).tokens
            np.testing.assert_array_equal(saved[f"{name}_tokens"], tokens)


def test_one_that_raises_does_not_wait_for_the_others_at_the_end() -> None:
    program = (
        "import jax; from jroute.distributed.processes import join_processes; join_processes()\n"
        "if jax.process_index() == 1: raise ValueError('no such thing')\n"
        "from jax.experimental.multihost_utils import sync_global_devices as wait; wait('ever')"
    )
    launcher = launch("--processes", "2", "--timeout", "600", *python(program))
    _, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    assert "[1] ValueError: no such thing" in err.splitlines()
    assert re.search(r"^error: process 1 of 2 .* ended with status 1 and all", err, re.MULTILINE)


def test_processes_that_slurm_started_find_each_other() -> None:
    """With the variables that srun sets, and a port that follows from the job's number."""
    job = next(
        job for job in range(os.getpid(), os.getpid() + 4096) if _is_free(61440 + job % 4096)
    )
    program = (
        "import jax; from jroute.distributed.processes import join_processes; "
        "join_processes(); join_processes(); "
        "print(jax.process_index(), jax.process_count(), jax.device_count())"
    )
    slurm = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_NUM_CPU_DEVICES": "3",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    assert [task.communicate(timeout=300)[0] for task in tasks] == ["0 2 6\n", "1 2 6\n"]
    assert [task.returncode for task in tasks] == [0, 0]


def test_the_examples_start_a_command(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$JROUTE_TIMEOUT $*"\n')
    srun.chmod(0o755)
    folders = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    printed = {
        example: subprocess.run(
            [ROOT / "configs" / "launch" / example, "echo", "two  words"],
            cwd=ROOT,
            env={**os.environ, "PATH": os.pathsep.join(folders), "PROCESSES": "2"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for example in ("slurm.sbatch", "one_machine.sh")
    }
    assert printed["slurm.sbatch"] == (
        "60 --gpu-bind=none --kill-on-bad-exit=1 --label echo two  words\n"
    )
    assert sorted(printed["one_machine.sh"].splitlines()) == ["[0] two  words", "[1] two  words"]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
