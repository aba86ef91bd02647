"""The tokenizer of a model as lm-eval uses it: special tokens, limits, chat templates."""

import hashlib
from typing import Any, Literal

from lm_eval.api.model import TemplateLM

from jroute.harness.chat import render_conversation
from jroute.lm import LanguageModel
from jroute.tasks.special_tokens import MARK, Prompt, as_text, encode, encode_prompt
from jroute.utils.errors import UserError

SpecialTokens = Literal["text", "control", "marked"]
"""What special tokens in requests are; those of the chat template always are tokens."""


class TokenizedLM(TemplateLM):
    """A model of lm-eval that knows its tokens, and answers no requests yet.

    Attributes:
        lm: The model.
        tokenizer: Its tokenizer.
        enable_thinking: Value for chat templates that can switch thinking.
        special_tokens: What special tokens in requests are; see ``JaxLM``.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        max_gen_toks: int,
        max_length: int | None,
        enable_thinking: bool,
        special_tokens: SpecialTokens = "text",
    ):
        """Wrap a model; see ``JaxLM`` for the arguments.

        Raises:
            UserError: ``max_length`` is more than the model's context.
        """
        super().__init__()
        if max_length is not None and not 1 < max_length <= lm.context:
            raise UserError(
                f"max_length is {max_length}, but must lie between 2 and the model's context of "
                f"{lm.context} tokens"
            )
        self.lm = lm
        self.tokenizer: Any = lm.tokenizer
        self.enable_thinking = enable_thinking
        self.special_tokens: SpecialTokens = special_tokens
        self._max_gen_toks = max_gen_toks
        self._max_length = max_length or lm.context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        return self.lm.end_token_ids[0] if end is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        """The token in place of an empty context: the start token, or else the end token."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Limit on new tokens where a task sets none."""
        return self._max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        """Part of the key of lm-eval's prompt cache: tokenizer, chat template, limits."""
        identity = (
            self.tokenizer.chat_template,
            self.enable_thinking,
            self.special_tokens,
            self.max_length,
            self.max_gen_toks,
        )
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{digest}"

    def prompt_of(self, context: str) -> Prompt:
        """Return the context of a request as a prompt: a raw one has no special tokens."""
        if isinstance(context, Prompt):  # rendered by the chat template
            return context
        marked = as_text(context, self.tokenizer) if self.special_tokens == "text" else context
        return Prompt(marked)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return token ids of a text, by default with what the tokenizer puts before every text.

        A prompt that begins with it already gets no second one.
        """
        prompt = self.prompt_of(string)
        if add_special_tokens is None:
            return encode_prompt(prompt, self.tokenizer)
        return encode(prompt, self.tokenizer, add_special_tokens=add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode a context and its continuation together, as ``TemplateLM`` does.

        Spaces at the end of the context belong to the continuation.
        """
        prompt = self.prompt_of(context)
        start = prompt.rstrip()
        whole = start + prompt[len(start) :] + self.prompt_of(continuation)
        ids = self.tok_encode(Prompt(start))
        return ids, self.tok_encode(Prompt(whole))[len(ids) :]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> Prompt:
        """Render a conversation; without a generation prompt the last message is left open."""
        turns = chat_history
        if self.special_tokens == "text":
            turns = [
                {**turn, "content": as_text(turn["content"], self.tokenizer)} for turn in turns
            ]
        return render_conversation(
            turns,
            self.tokenizer,
            enable_thinking=self.enable_thinking,
            add_generation_prompt=add_generation_prompt,
        )

    def tail(self, context: str, room: int) -> str:
        """Return the end of a prompt that fits into ``room`` tokens: what the model sees of it."""
        ids = self.tok_encode(Prompt(context))
        if len(ids) <= room:
            return context
        text = self.tokenizer.decode(ids[-room:]).lstrip("\ufffd")
        if MARK in context:  # the same part of it, with its marks
            start, shown = len(context), len(text)
            while start and shown > 0:
                start -= 1
                shown -= context[start] != MARK
            text = context[start:]
        while len(self.tok_encode(Prompt(text))) > room:  # it may tokenize differently on its own
            text = text[1:]
        return Prompt(text)
