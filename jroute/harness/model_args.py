"""lm-eval's ``--model_args`` as the arguments of ``JaxLM``."""

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from jroute.arms.registry import BASELINE, SUBJECT
from jroute.experiment.run import load_run
from jroute.harness import policy
from jroute.harness.slots import slots_of
from jroute.lm import load
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check


class _Arguments(Record):
    """Arguments of ``JaxLM``."""

    slots: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_gen_toks: Annotated[int, Field(ge=1)] | None = None
    max_length: Annotated[int, Field(ge=2)] | None = None
    enable_thinking: bool = False
    force_template: bool = False
    special_tokens: Literal["text", "control", "marked"] = "text"


_FOLDERS = ("run", "model_dir", "pretrained")


def constructor_names(cls: type) -> set[str]:
    """Return the names of a constructor's arguments, without the model and its gate."""
    return set(inspect.signature(cls.__init__).parameters) - {"self", "lm", "gate"}


def check_arguments(arguments: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse arguments of ``JaxLM`` that it does not take.

    Args:
        arguments: The arguments.
        known: Names that may be given.
        where: What gave them, for messages.

    Raises:
        UserError: An unknown name, or a value of another type or size.
    """
    if unknown := sorted(arguments.keys() - set(known)):
        raise UserError(
            f"{where}: got an unexpected keyword argument {unknown[0]!r}; known are "
            f"{', '.join(sorted(known))}"
        )
    check(dict(arguments), _Arguments, where, "correct it")


def constructor_arguments(
    model_args: Mapping[str, Any], config: Mapping[str, Any] | None, *, known: Collection[str]
) -> dict[str, Any]:
    """Open a folder and return the arguments of ``JaxLM``.

    Args:
        model_args: ``run``, a run folder, with ``arm``; or ``model_dir``, a model directory, with
            ``routing``, ``dtype`` and ``arm`` (``baseline`` or ``fixed:G``), or without an arm for
            the plain model. ``pretrained`` may name either folder. All others go to ``JaxLM``.
        config: lm-eval's ``batch_size`` is the number of slots, if it is a number; ``device`` and
            ``max_batch_size`` mean nothing to JAX.
        known: Names of the arguments that ``JaxLM`` takes.

    Raises:
        UserError: No such folder, or arguments that do not belong together.
    """
    arguments = dict(model_args)
    arguments.pop("trust_remote_code", None)  # lm-eval's option; no model here has code
    batch_size = (config or {}).get("batch_size")
    if batch_size is not None and (slots := slots_of(batch_size)):
        arguments.setdefault("slots", slots)
    key, folder = _take_folder(arguments)
    arm = arguments.pop("arm", None)
    if key == "run" or (key == "pretrained" and (Path(folder) / "config.yaml").is_file()):
        _check_known(arguments, known, "a run")
        check(arguments, _Arguments, "model_args", "correct it")
        if arm is None:
            raise UserError(
                f"model_args name run {folder} but no arm; add arm={SUBJECT}, arm={BASELINE}, …"
            )
        run = load_run(folder)
        prompt = run.experiment.prompt
        arguments.setdefault("enable_thinking", prompt.enable_thinking)
        arguments.setdefault("special_tokens", prompt.special_tokens)
        return {"lm": run.lm, "gate": policy.run_policy(run, arm), **arguments}
    routing, dtype = arguments.pop("routing", None), arguments.pop("dtype", "")
    _check_known(arguments, known, "a model")
    check(arguments, _Arguments, "model_args", "correct it")
    lm = load(folder, routing, dtype=dtype)
    return {"lm": lm, "gate": None if arm is None else policy.model_policy(arm), **arguments}


def _take_folder(arguments: dict[str, Any]) -> tuple[str, str]:
    """Remove the one folder from arguments; return its key and its path."""
    folders = {key: arguments.pop(key) for key in _FOLDERS if key in arguments}
    if len(folders) != 1:
        raise UserError(
            "model_args must name one folder: run=<run folder>,arm=<arm> or "
            "model_dir=<model directory>"
        )
    ((key, folder),) = folders.items()
    return key, folder


def _check_known(arguments: Mapping[str, Any], known: Collection[str], subject: str) -> None:
    if unknown := sorted(arguments.keys() - set(known)):
        raise UserError(
            f"model_args hold {unknown[0]!r}, which {subject} does not take; known are run, "
            f"model_dir, arm, {', '.join(sorted(known))}, and for a model_dir dtype and routing"
        )
