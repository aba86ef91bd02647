"""The routing presets in ``configs/routing/``: their names and their files."""

from pathlib import Path

from jroute.utils.errors import UserError


def preset_names() -> list[str]:
    """Return the names of the presets that ship with jroute."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def routing_file(name_or_path: str) -> Path:
    """Find a routing preset by name, or a YAML file by path.

    Raises:
        UserError: There is no such preset or file.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if _is_file(path):
            return path
        raise UserError(
            f"routing file {path!s:.300} does not exist; "
            f"give a path to a YAML file or one of {preset_names()}"
        )
    path = _preset_folder() / f"{name_or_path}.yaml"
    if not _is_file(path):
        raise UserError(
            f"no routing preset is named {name_or_path!r:.100}; presets are "
            f"{', '.join(preset_names())}"
        )
    return path


def _is_file(path: Path) -> bool:
    """Return whether a file exists; names that no file can have belong to none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _preset_folder() -> Path:
    """Return ``configs/routing``: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "configs" / "routing"
    return checkout if checkout.is_dir() else package / "configs" / "routing"
