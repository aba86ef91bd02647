"""Text in which special tokens are text: ``<|im_end|>`` in a question ends no turn.

A prompt is one string, in which a chat template has put questions between its own special tokens.
Inside of a question, an example or a system message every special token is therefore preceded by
``MARK``, and ``encode`` gives the marked ones as the text that they are and all others as tokens.
A text without special tokens has no marks, and its ids are those that the tokenizer gives.

Special are, as for transformers' ``sanitize_control_tokens``, the tokens that the tokenizer calls
so, and the other added tokens that its chat template writes, such as ``<think>``.
"""

import json
import re
import secrets
from functools import lru_cache
from typing import Any, NamedTuple

from tokenizers import Tokenizer

MARK = "\ufdd0"
"""Precedes a special token that is text: a character that Unicode reserves for uses like this."""


class Prompt(str):
    """A whole prompt: its special tokens are tokens, but for those that are marked."""

    def __add__(self, text: str) -> "Prompt":
        """Return a longer prompt."""
        return Prompt(str(self) + text)


def as_text(text: str, tokenizer: Any) -> str:
    """Return a text in which all special tokens are marked, to be encoded as text."""
    return _marked(tokenizer).sub(lambda match: MARK + match[0], text)


def without_marks(text: str) -> str:
    """Return a text as it was before ``as_text``."""
    return re.sub(f"{MARK}({MARK}?)", r"\1", text)


def encode(text: str, tokenizer: Any, *, add_special_tokens: bool = False) -> list[int]:
    """Return the token ids of a text.

    Args:
        text: The text: marked special tokens in it are text, all others are tokens.
        tokenizer: A fast Hugging Face tokenizer.
        add_special_tokens: Whether to add those that the tokenizer puts around a text.
    """
    if MARK not in text:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    renamed = _renamed(tokenizer)
    encoding = renamed.tokenizer.encode(
        renamed.pattern.sub(
            lambda match: match[1] or renamed.names.get(match[0], ""),
            text,
        ),
        add_special_tokens=add_special_tokens,
    )
    return [renamed.ids.get(token, token) for token in encoding.ids]


def encode_prompt(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a whole prompt, with what the tokenizer puts before every text.

    That is ``<s>`` or ``<|begin_of_text|>`` for a Llama, and nothing for Qwen and SmolLM2. A prompt
    that begins with it, as chat templates make them, gets no second one.

    Args:
        text: The prompt: marked special tokens in it are text, all others are tokens.
        tokenizer: A fast Hugging Face tokenizer.
    """
    ids, start = encode(text, tokenizer), _start(tokenizer)
    return ids if ids[: len(start)] == start else [*start, *ids]


@lru_cache(maxsize=8)
def _start(tokenizer: Any) -> list[int]:
    """Return the ids that a tokenizer puts before a text; those after it end it, and stay out."""
    text = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    places = range(len(whole) - len(text) + 1)
    return next((whole[:i] for i in places if whole[i : i + len(text)] == text), [])


def _contents(tokenizer: Any) -> list[str]:
    """Return the special tokens, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    template = str(getattr(tokenizer, "chat_template", ""))
    contents = {
        token.content
        for token in added
        if token.special or (token.content in template and not token.content.isspace())
    }
    return sorted(contents - {""}, key=len, reverse=True)


@lru_cache(maxsize=8)
def _marked(tokenizer: Any) -> re.Pattern[str]:
    """Return the pattern of what ``as_text`` puts a mark before: special tokens, and marks."""
    return re.compile("|".join(map(re.escape, [MARK, *_contents(tokenizer)])))


class _Renamed(NamedTuple):
    """A tokenizer that knows its special tokens by other names, so their text is just text.

    Attributes:
        tokenizer: The tokenizer.
        names: The other names, which no text can guess.
        ids: The ids of special tokens by those that this tokenizer gives them.
        pattern: What to replace in a text: what is marked, special tokens, and single marks.
    """

    tokenizer: Tokenizer
    names: dict[str, str]
    ids: dict[int, int]
    pattern: re.Pattern[str]


@lru_cache(maxsize=2)
def _renamed(tokenizer: Any) -> _Renamed:
    contents, secret = _contents(tokenizer), secrets.token_hex(8)
    names = {content: f"\ufdd2{secret}.{i}\ufdd3" for i, content in enumerate(contents)}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    renamed = Tokenizer.from_str(json.dumps(state))
    given = {token["content"]: token["id"] for token in state["added_tokens"]}
    ids = {renamed.token_to_id(content): number for content, number in given.items()}
    own = set(renamed.get_vocab(with_added_tokens=False).values())
    moved = {now: number for now, number in ids.items() if now is not None and now not in own}
    alternatives = "|".join(map(re.escape, contents)) or "(?!)"
    pattern = re.compile(f"{MARK}({MARK}|{alternatives})|{alternatives}|{MARK}")
    return _Renamed(renamed, names, moved, pattern)
