"""Judge arms with lm-evaluation-harness; see ``jroute.harness.command``."""

from jroute.harness.command import main
from jroute.utils.cli import run_command

if __name__ == "__main__":
    run_command(main, "the arm at work left nothing")
