"""Whether another process of this machine still runs."""

import os


def is_running(process: int) -> bool:
    """Return whether a process with this number exists on this machine."""
    try:
        os.kill(process, 0)  # signal 0 only checks
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
