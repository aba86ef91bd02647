"""The tokenizer of a model as lm-eval uses it: special tokens, limits, chat templates."""

import hashlib
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix

from jroute.harness.chat import render_conversation
from jroute.lm import LanguageModel
from jroute.utils.errors import UserError


class TokenizedLM(TemplateLM):
    """A model of lm-eval that knows its tokens, and answers no requests yet.

    Attributes:
        lm: The model.
        tokenizer: Its tokenizer.
        enable_thinking: Value for chat templates that can switch thinking.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        max_gen_toks: int,
        max_length: int | None,
        enable_thinking: bool,
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
            self.max_length,
            self.max_gen_toks,
        )
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{digest}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return token ids of a text, by default with the special tokens that the tokenizer adds.

        A text that begins with the prefix token already gets no second one.
        """
        if add_special_tokens is None:
            prefix = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not has_bos_prefix(string, prefix)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation; without a generation prompt the last message is left open."""
        return render_conversation(
            chat_history,
            self.tokenizer,
            enable_thinking=self.enable_thinking,
            add_generation_prompt=add_generation_prompt,
        )

    def tail(self, context: str, room: int) -> str:
        """Return the end of a context that fits into ``room`` tokens: what the model sees of it."""
        ids = self.tok_encode(context)
        if len(ids) <= room:
            return context
        text = self.tokenizer.decode(ids[-room:]).lstrip("\ufffd")
        while len(self.tok_encode(text)) > room:  # the tail may tokenize differently on its own
            text = text[1:]
        return text
