"""Tokenizers, loaded without torch."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from jroute.utils.errors import UserError, one_line


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a model's folder.

    The source is ``tokenizer.json`` or, in a folder without it, ``vocab.json`` and ``merges.txt``,
    which Qwen's releases also hold; both give the same ids. Either way ``tokenizer_config.json`` is
    needed. The classes are explicit because ``AutoTokenizer`` imports torch.

    Raises:
        UserError: The files are missing or damaged.
    """
    directory = Path(directory)
    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    needed = ["tokenizer.json", "tokenizer_config.json"]
    if not (directory / "tokenizer.json").is_file() and (directory / "vocab.json").is_file():
        kind = Qwen2Tokenizer
        needed = ["merges.txt", "tokenizer_config.json"]
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
