"""Tokenizers, loaded without torch."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from jroute.errors import UserError


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """Loads ``tokenizer.json`` with its ``tokenizer_config.json`` from a model's folder.

    ``PreTrainedTokenizerFast`` is named outright because ``AutoTokenizer`` imports torch.

    Raises:
        UserError: The files are missing or damaged.
    """
    directory = Path(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no {name}; copy it there from the model's release")
    try:
        # Contexts are checked where prompts are run, so the tokenizer need not warn of long ones.
        return PreTrainedTokenizerFast.from_pretrained(
            str(directory), local_files_only=True, model_max_length=VERY_LARGE_INTEGER
        )
    except Exception as error:
        raise UserError(
            f"the tokenizer in {directory} cannot be read ({error}); copy it there again"
        ) from error
