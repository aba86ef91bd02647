"""Full disks: every command on a small file system that runs out of bytes or of inodes."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.campaign.kills import finish, refusal
from tests.campaign.lab import Lab
from tests.campaign.trials import Trial
from tests.campaign.worker import Worker

BLOCK = 4096


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a file system in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with small_disk(folder, "size=1m"):
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory on an empty folder."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disks(
    lab: Lab, worker: Worker, folder: Path, rng: random.Random, count: int
) -> Iterator[Trial]:
    """Let commands run out of bytes or inodes somewhere, make room, and let them finish."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        step = lab.steps[i % len(lab.steps)]
        before, after = _usage(lab.before(step)), _usage(lab.after(step))
        of_bytes = (i + i // len(lab.steps)) % 2 == 0  # few trials have both kinds too
        share = rng.uniform(0.0, 1.0)
        blocks, inodes = (b + int(share * (a - b)) for b, a in zip(before, after, strict=True))
        limit = f"size={blocks * BLOCK}" if of_bytes else f"nr_inodes={inodes + 2}"
        with small_disk(folder, "size=64m" if not of_bytes else limit + ",nr_inodes=100k"):
            day = folder / "day"
            shutil.copytree(lab.before(step), day)
            if not of_bytes:
                _remount(folder, limit)
            ended = worker.run(step.argv, day)
            faults = list(refusal(ended))
            _remount(folder, "size=256m,nr_inodes=100k")
            faults += finish(lab, worker, step, day)
            what = "bytes" if of_bytes else "inodes"
            name = f"{step.name} on a disk with {share:.0%} of the {what} that it needs"
            yield Trial(name, step.name, tuple(faults), took_effect=ended.status != 0)


def _remount(folder: Path, options: str) -> None:
    command = ["mount", "-o", f"remount,{options}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _usage(folder: Path) -> tuple[int, int]:
    """Return the blocks and the inodes that a folder takes."""
    paths = [folder, *folder.rglob("*")]
    blocks = sum(-(-os.lstat(path).st_size // BLOCK) for path in paths if not path.is_dir())
    return blocks, len(paths)
