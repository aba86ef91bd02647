"""Start one program as several processes; see ``jroute.distributed.launch``."""

from jroute.distributed.launch import main
from jroute.utils.cli import run_command

if __name__ == "__main__":
    run_command(main, "all processes were ended")
