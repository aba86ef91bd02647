"""Tokenizers, loaded without torch."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from jroute.utils.errors import UserError, one_line
from jroute.utils.json_files import Record, read_json


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a model's folder.

    The source is ``tokenizer.json`` or, in a Qwen's folder without it, ``vocab.json`` and
    ``merges.txt``; both give the same ids. Other tokenizers split text in other ways before they
    merge, which these two files do not say. Either way ``tokenizer_config.json`` is needed. The
    classes are explicit because ``AutoTokenizer`` imports torch.

    Raises:
        UserError: The files are missing or damaged.
    """
    directory = Path(directory)
    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    needed = ["tokenizer.json", "tokenizer_config.json"]
    if not (directory / "tokenizer.json").is_file() and (directory / "vocab.json").is_file():
        kind = Qwen2Tokenizer
        needed = ["merges.txt", "tokenizer_config.json"]
        if not _is_qwen(directory / "tokenizer_config.json"):
            needed = ["tokenizer.json"]
    for name in needed:
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no {name}; copy it there from the model's release")
    try:
        # The engine checks contexts, so the tokenizer need not warn of long ones.
        return kind.from_pretrained(
            str(directory), local_files_only=True, model_max_length=VERY_LARGE_INTEGER
        )
    except Exception as error:
        raise UserError(
            f"the tokenizer in {directory} cannot be read ({one_line(error)}); copy it there again"
        ) from error


class _Class(Record):
    """What ``tokenizer_config.json`` says about the class of a tokenizer."""

    tokenizer_class: str | None = None


def _is_qwen(file: Path) -> bool:
    if not file.is_file():
        return True  # its absence is told first
    name = read_json(file, _Class, "copy it there from the model's release").tokenizer_class
    return name is None or name.startswith("Qwen2")
