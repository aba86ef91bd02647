"""Prompts, raw and through a chat template."""

import pytest

from jroute.tasks.prompts import PromptConfig, render, user_message
from jroute.utils.errors import UserError


class Recorder:
    """A tokenizer whose template shows what it was given."""

    def apply_chat_template(self, conversation, **kwargs):
        assert kwargs == {
            "tokenize": False,
            "add_generation_prompt": True,
            "continue_final_message": False,
            "enable_thinking": False,
        }
        turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in conversation)
        return turns + "<assistant>"


class Refuser:
    def apply_chat_template(self, conversation, **kwargs):
        raise ValueError("no chat template is set")


def test_question_is_put_where_the_template_says():
    config = PromptConfig(template="Solve: {question}\nEnd with #### N.")
    assert user_message("1 + 1?", config) == "Solve: 1 + 1?\nEnd with #### N."


def test_braces_are_plain_text():
    config = PromptConfig(template='{"q": "{question}", {0} {x!r:>3} {{}} \\boxed{} }')
    question = "What is {x} in {question} {0} {{1}} %s?"
    assert user_message(question, config) == (
        '{"q": "What is {x} in {question} {0} {{1}} %s?", {0} {x!r:>3} {{}} \\boxed{} }'
    )


def test_chat():
    assert render("1 + 1?", PromptConfig(), Recorder()) == "<user>1 + 1?</user><assistant>"
    config = PromptConfig(template="Q: {question}", system="Be brief.")
    assert render("1 + 1?", config, Recorder()) == (
        "<system>Be brief.</system><user>Q: 1 + 1?</user><assistant>"
    )


def test_raw_needs_no_template():
    config = PromptConfig(template="Q: {question}\nA:", chat=False)
    assert render("1 + 1?", config, Refuser()) == "Q: 1 + 1?\nA:"


def test_bad_input_is_told():
    with pytest.raises(UserError, match=r"prompt\.template 'Solve it' .*put \{question\}"):
        PromptConfig(template="Solve it")
    with pytest.raises(UserError, match=r"prompt\.system is set but prompt\.chat is false"):
        PromptConfig(system="Be brief.", chat=False)
    with pytest.raises(UserError, match=r"enable_thinking is set but prompt\.chat is false"):
        PromptConfig(enable_thinking=True, chat=False)
    with pytest.raises(UserError, match=r"no chat template is set.*prompt\.chat to false"):
        render("1 + 1?", PromptConfig(), Refuser())
    with pytest.raises(UserError, match=r"enable_thinking is true, but .* does not support"):
        render("1 + 1?", PromptConfig(enable_thinking=True), Recorder())


def test_with_a_real_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(UserError, match="chat template cannot render"):
        render("1 + 1?", PromptConfig(), tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert render("Is {{ 1 }} < 2?", PromptConfig(), tokenizer) == (
        "<|im_start|>user\nIs {{ 1 }} < 2?<|im_end|>\n<|im_start|>assistant\n"
    )
