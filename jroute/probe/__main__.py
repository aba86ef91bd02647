"""Show what the gates of an experiment do to its model, before anyone trains on them.

    python -m jroute.probe --config configs/tiny.yaml
    python -m jroute.probe --config configs/tiny.yaml --routing mhc --split test --prompts 16
    python -m jroute.probe --config configs/tiny.yaml --calibrate_sinks true

Nothing has to be trained or generated first. Numbers and figures are written to ``RUN/probe``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jroute.experiment.config import Experiment
from jroute.tasks import Split
from jroute.utils.cli import command, run_command
from jroute.utils.config import parse
from jroute.utils.errors import UserError
from jroute.utils.paths import check_path, output_folder


@dataclass(frozen=True)
class ProbeOptions:
    """Options of the command itself.

    Attributes:
        split: Split of the prompts.
        prompts: Number of prompts, which run as one batch.
        out: Folder for numbers and figures; empty is ``probe`` in the run folder.
        calibrate_sinks: Print norms for ``routing.sink_norms`` instead.
    """

    split: Split = "train"
    prompts: int = 8
    out: str = ""
    calibrate_sinks: bool = False


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    experiment, options = parse(
        Experiment,
        argv,
        prog="python -m jroute.probe",
        description=__doc__ or "",
        extra=ProbeOptions,
    )
    if options.prompts < 1:
        raise UserError(f"prompts is {options.prompts}; give at least 1")
    directory = check_path(experiment.run, "run")
    folder = output_folder(options.out or directory, "out" if options.out else "run")
    from jroute.experiment.run import Run
    from jroute.probe import effects
    from jroute.probe.files import write_probe
    from jroute.probe.text import probe_text

    run = Run(directory, experiment)
    lm, prompts = run.base, run.data.tokens(options.split, options.prompts)
    if run.mixing.enabled and run.mixing.file.is_file():
        lm = run.lm
    elif run.mixing.enabled:
        print("the mixing weights are not learned yet; these are the routing's own")
    with lm.devices():
        if options.calibrate_sinks:
            norms, above = effects.sink_norms(lm.params, lm.config, prompts)
            print(f"# above: {above.mean():.2%} of the tokens of {len(prompts)} prompts")
            print(f"sink_norms: [{', '.join(f'{norm:.4g}' for norm in norms)}]")
            return
        probe = effects.probe(lm.params, lm.config, lm.routing, prompts, experiment.gates)
    folder = folder if options.out else run.folder.probe
    files = write_probe(folder, probe, lm, options.split, prompts)
    print(f"{len(prompts)} prompts of {options.split}, {sum(map(len, prompts))} tokens")
    print(f"{probe_text(probe, lm.routing)}\n\nverdict: {probe.verdict}\n")
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    run_command(main, "nothing was changed")
