"""Judge arms with lm-evaluation-harness; see ``jroute.harness.command``."""

from collections.abc import Sequence

from jroute.utils.cli import command, run_command


@command
def check_harness(argv: Sequence[str] | None = None) -> None:
    """Import ``jroute.harness``, which refuses any version of lm-eval but its own."""
    import jroute.harness  # noqa: F401


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of ``jroute.harness`` and return its status."""
    if status := check_harness():
        return status
    from jroute.harness.command import main as evaluate_arms

    return evaluate_arms(argv)


if __name__ == "__main__":
    run_command(main, "the answers so far are kept; the same command goes on from them")
