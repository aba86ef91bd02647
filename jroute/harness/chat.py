"""Chat templates as lm-eval asks for them."""

import logging
from typing import Any

from jinja2.exceptions import TemplateError

from jroute.tasks.prompts import render_chat
from jroute.tasks.special_tokens import Prompt

logger = logging.getLogger(__name__)


def render_conversation(
    messages: list[dict[str, str]],
    tokenizer: Any,
    *,
    enable_thinking: bool,
    add_generation_prompt: bool,
) -> Prompt:
    """Render a conversation; a template that refuses the system role gets it without that role.

    Args:
        messages: Messages with ``role`` and ``content``.
        tokenizer: The model's tokenizer.
        enable_thinking: Value for templates that can switch thinking.
        add_generation_prompt: Whether the assistant's turn begins at the end; otherwise the last
            message is left open.

    Raises:
        TemplateError: The template refuses the conversation for another reason.
    """

    def render(turns: list[dict[str, str]]) -> Prompt:
        return render_chat(
            turns,
            tokenizer,
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
        )

    try:
        return render(messages)
    except TemplateError as error:
        if all(message["role"] != "system" for message in messages):
            raise
        logger.warning("the chat template refuses the system message (%s); left out", error)
        return render([message for message in messages if message["role"] != "system"])
