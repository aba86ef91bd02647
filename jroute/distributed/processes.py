"""Several processes of one program, as ``python -m jroute.launch`` or Slurm starts them.

After ``join_processes`` ``jax.devices()`` lists the devices of all processes, and every process
runs the same program.
"""

import atexit
import os
import sys
from typing import Any

import jax

from jroute.utils.errors import UserError


def is_first_process() -> bool:
    """Return whether this process is the one that prints."""
    return jax.process_index() == 0


COORDINATOR, PROCESSES, PROCESS, TIMEOUT = (
    f"JROUTE_{name}" for name in ("COORDINATOR", "PROCESSES", "PROCESS", "TIMEOUT")
)
"""Environment variables that the launcher sets for its processes."""

DEFAULT_TIMEOUT = 30


def started_as_several() -> bool:
    """Return whether a launcher or Slurm started several processes of this program."""
    in_slurm = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return COORDINATOR in os.environ or in_slurm


def join_processes() -> None:
    """Join the other processes of this program, if a launcher or Slurm started several.

    Call it before anything else uses a device. ``$JROUTE_TIMEOUT`` (seconds, default 30) bounds the
    time until the others notice that a process has died, and end too.

    Raises:
        UserError: The launcher's variables are incomplete or not numbers, or the others cannot be
            reached.
    """
    if jax.distributed.is_initialized():
        return
    try:
        timeout = int(os.environ.get(TIMEOUT, DEFAULT_TIMEOUT))
        arguments: dict[str, Any] = {}
        if COORDINATOR in os.environ:
            arguments = {
                "coordinator_address": os.environ[COORDINATOR],
                "num_processes": int(os.environ[PROCESSES]),
                "process_id": int(os.environ[PROCESS]),
                "cluster_detection_method": "deactivate",
            }
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the environment of several processes is incomplete or wrong ({error}); start them "
            "with python -m jroute.launch"
        ) from None
    if not started_as_several():
        return
    # The service would intercept SIGTERM, on which the command cleans up and ends.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this program did not find each other ({error}); is the "
            "coordinator's address reachable from every machine, and its port free?"
        ) from None
    atexit.register(_leave_at_once_if_failed)


def _leave_at_once_if_failed() -> None:
    """After an uncaught exception, spare the others the wait for this process at the end."""
    if hasattr(sys, "last_value"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
