"""lm-eval's ``--model_args`` as the arguments of the adapter."""

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jroute.harness import policy
from jroute.utils.errors import UserError

_FOLDERS = ("run", "model_dir", "pretrained")


def constructor_names(cls: type) -> set[str]:
    """Return the names of a constructor's arguments, without the model and its gate."""
    return set(inspect.signature(cls.__init__).parameters) - {"self", "lm", "gate"}


def constructor_arguments(
    given: Mapping[str, Any], additional: Mapping[str, Any] | None, *, known: Collection[str]
) -> dict[str, Any]:
    """Open a folder and say what the adapter is to be made with.

    Args:
        given: ``run``, a run folder, with ``arm``; or ``model_dir``, a model directory, with
            ``routing``, ``dtype`` and ``arm`` (``baseline`` or ``fixed:G``) or without an arm for
            the plain model. ``pretrained`` may name either folder. The rest is handed on.
        additional: lm-eval's ``batch_size`` is the number of slots, if it is a number; ``device``
            and ``max_batch_size`` mean nothing to JAX.
        known: What may be handed on.

    Raises:
        UserError: No such folder, or arguments that do not belong together.
    """
    import jroute  # the face stands above this module, so it is only looked up on demand

    arguments = dict(given)
    batch_size = str((additional or {}).get("batch_size"))
    if batch_size.isdigit():
        arguments.setdefault("slots", int(batch_size))
    folders = {key: arguments.pop(key) for key in _FOLDERS if key in arguments}
    if len(folders) != 1:
        raise UserError(
            "model_args must name one folder: run=<run folder>,arm=<arm> or "
            "model_dir=<model directory>"
        )
    ((key, folder),) = folders.items()
    arm, model = arguments.pop("arm", None), {}
    is_run = key == "run" or (key == "pretrained" and (Path(folder) / "config.yaml").is_file())
    if not is_run:
        model = {name: arguments.pop(name) for name in ("routing", "dtype") if name in arguments}
    if unknown := sorted(arguments.keys() - set(known)):
        raise UserError(
            f"model_args hold {unknown[0]!r}, which {'a run' if is_run else 'a model'} does not "
            f"take; known are run, model_dir, arm, {', '.join(sorted(known))}, and for a model_dir "
            "dtype and routing"
        )
    if not is_run:
        lm = jroute.load(folder, model.get("routing"), dtype=model.get("dtype", ""))
        return {"lm": lm, "gate": None if arm is None else policy.model_policy(arm), **arguments}
    if arm is None:
        raise UserError(f"model_args name run {folder} but no arm; add arm=rl, arm=baseline, …")
    run = jroute.load_run(folder)
    arguments.setdefault("enable_thinking", run.experiment.prompt.enable_thinking)
    return {"lm": run.lm, "gate": policy.run_policy(run, arm), **arguments}
