"""Prompts: from a question to the text that a model reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jroute.tasks.special_tokens import Prompt, as_text
from jroute.tasks.templates import TemplateTokenizer, render_template, template_file
from jroute.utils.errors import UserError, one_line
from jroute.utils.keys import Keys, keys, stored

PLACEHOLDER = "{question}"


@runtime_checkable
class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that ``render`` uses."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render a conversation."""
        ...


@dataclass(frozen=True)
class PromptConfig:
    """How a question becomes a prompt.

    Attributes:
        template: The user's message; ``{question}`` stands for the question. All other text,
            braces included, is literal.
        system: The system message of a chat; ``""`` for none.
        chat: Whether to wrap the message in the tokenizer's chat template, up to the beginning
            of the model's turn. Otherwise the message alone is the prompt.
        enable_thinking: Whether a model thinks before it answers, for chat templates with such a
            switch. Off by default: thoughts cost thousands of tokens, and numbers in them can
            pass for the answer.
        benchmark: A task of lm-evaluation-harness whose own prompt replaces the template: its
            wording, its examples, its beginning of the answer. So a controller trains on the
            benchmark's prompts.
        num_fewshot: Number of examples in the benchmark's prompt; ``-1`` for the task's own.
        multiturn: Whether each example of a chat is a separate turn.
        special_tokens: What special tokens in questions, system messages and examples are:
            ``text``, or ``control`` tokens as in lm-eval's own models. Those of the chat template
            and of ``template`` are always control tokens.
    """

    stored_keys: ClassVar[Keys] = keys(
        *("template", "system", "chat", "enable_thinking", "benchmark", "num_fewshot"),
        *("multiturn", "special_tokens"),
    )
    later_fields: ClassVar[Mapping[str, Any]] = {"special_tokens": "text"}

    template: str = PLACEHOLDER
    system: str = ""
    chat: bool = True
    enable_thinking: bool = False
    benchmark: str = ""
    num_fewshot: int = -1
    multiturn: bool = True
    special_tokens: Literal["text", "control"] = "text"

    def __post_init__(self) -> None:
        """Refuse combinations that contradict each other."""
        if PLACEHOLDER not in self.template:
            raise UserError(
                f"prompt.template {self.template!r} has no place for the question; "
                f"put {PLACEHOLDER} where it belongs."
            )
        if self.benchmark and self.template != PLACEHOLDER:
            raise UserError(
                "prompt.template and prompt.benchmark are both set; a benchmark brings its own "
                "wording, so leave the template out."
            )
        if not self.benchmark and self.num_fewshot != -1:
            raise UserError(
                "prompt.num_fewshot is set but prompt.benchmark is not, and only a benchmark has "
                "examples to show; write yours into prompt.template."
            )
        if self.num_fewshot < -1:
            raise UserError(
                f"prompt.num_fewshot is {self.num_fewshot}; give 0 or more, or -1 for the "
                "benchmark's own number."
            )
        if self.system and not self.chat:
            raise UserError(
                "prompt.system is set but prompt.chat is false, and a raw prompt has no system "
                "message; set prompt.chat to true or move the text into prompt.template."
            )
        if self.enable_thinking and not self.chat:
            raise UserError(
                "prompt.enable_thinking is set but prompt.chat is false, and only chat templates "
                "switch thinking; set prompt.chat to true."
            )


def given_text(text: str, config: PromptConfig, tokenizer: Any) -> str:
    """Return a text that is not of a template, with its special tokens marked if they are text."""
    return as_text(text, tokenizer) if config.special_tokens == "text" else text


def user_message(question: str, config: PromptConfig) -> str:
    """Put a question into the template.

    Args:
        question: The question; it may hold braces.
        config: The template.

    Returns:
        The text of the user's message.
    """
    return config.template.replace(PLACEHOLDER, question)


def render_chat(
    messages: Sequence[Mapping[str, str]],
    tokenizer: ChatTokenizer,
    *,
    enable_thinking: bool,
    add_generation_prompt: bool = True,
) -> Prompt:
    """Render a conversation with the tokenizer's chat template.

    Args:
        messages: The turns, each with ``role`` and ``content``.
        tokenizer: A Hugging Face tokenizer.
        enable_thinking: As in ``PromptConfig``. It is always passed on, because a hybrid
            template without it lets the model think.
        add_generation_prompt: Whether to open the model's turn; otherwise the last message stays
            open.

    Raises:
        UserError: Thinking is enabled, but the template does not support it.
    """
    if enable_thinking and "enable_thinking" not in str(getattr(tokenizer, "chat_template", "")):
        raise UserError(
            "enable_thinking is true, but the tokenizer's chat template does not support "
            "enable_thinking; set it to false or use a tokenizer with a hybrid template."
        )
    if not isinstance(tokenizer, TemplateTokenizer):  # not of transformers: it renders itself
        return Prompt(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                enable_thinking=enable_thinking,
            )
        )
    text = render_template(
        tokenizer,
        messages,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
    )
    return Prompt(text)


def render(question: str, config: PromptConfig, tokenizer: ChatTokenizer) -> str:
    """Render the whole prompt of a question.

    Args:
        question: The question.
        config: The template, the system message, whether this is a chat and whether to think.
        tokenizer: A Hugging Face tokenizer, whose chat template is used for a chat.

    Returns:
        The prompt as text, to be encoded with ``special_tokens.encode_prompt``.

    Raises:
        UserError: The tokenizer has no chat template, or its template refuses the messages or
            thinking.
    """

    def chat(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            return render_chat(
                messages,
                tokenizer,
                enable_thinking=config.enable_thinking,
                add_generation_prompt=add_generation_prompt,
            )
        except UserError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            raise UserError(
                f"the tokenizer's chat template cannot render this prompt ({one_line(error)}), see "
                f"{template_file(tokenizer)}; "
                "set prompt.chat to false or use a tokenizer with a chat template."
            ) from error

    if config.benchmark:
        # Imports lm-eval, which takes seconds.
        from jroute.tasks.benchmarks.prompting import benchmark_prompt

        shots = None if config.num_fewshot < 0 else config.num_fewshot

        def benchmark_chat(messages: Any, add_generation_prompt: bool = True) -> str:
            turns = [
                {**turn, "content": given_text(turn["content"], config, tokenizer)}
                for turn in messages
            ]
            return chat(turns, add_generation_prompt)

        prompt = benchmark_prompt(config.benchmark, shots)(
            question,
            system=config.system,
            chat=benchmark_chat if config.chat else None,
            multiturn=config.multiturn,
        )
        return prompt if config.chat else given_text(prompt, config, tokenizer)
    message = user_message(given_text(question, config, tokenizer), config)
    if not config.chat:
        return message
    content = given_text(config.system, config, tokenizer)
    system = [{"role": "system", "content": content}] if content else []
    return chat([*system, {"role": "user", "content": message}])


def meaning(config: PromptConfig, tokenizer: ChatTokenizer) -> Any:
    """Return what decides an experiment's prompts, for fingerprints.

    The config only names a benchmark, whose wording may differ in another version of lm-eval, so
    the wording is part of the result.
    """
    if config.benchmark:
        return [stored(config), render(PLACEHOLDER, config, tokenizer)]
    changed = {} if config.special_tokens == "text" else {"special_tokens": config.special_tokens}
    return {  # the other fields concern benchmarks only
        "template": config.template,
        "system": config.system,
        "chat": config.chat,
        "enable_thinking": config.enable_thinking,
        **changed,
    }
