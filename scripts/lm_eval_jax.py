"""Judges arms with lm-evaluation-harness; see ``jroute.harness.command``."""

from jroute.harness.command import main
from jroute.utils.cli import enter

if __name__ == "__main__":
    enter(main, "the arm at work left nothing")
