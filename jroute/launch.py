"""Starts one program as several processes; see ``jroute.distributed.launch``."""

from jroute.distributed.launch import main
from jroute.utils.cli import enter

if __name__ == "__main__":
    enter(main, "all processes were ended")
