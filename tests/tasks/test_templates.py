"""A chat template ends, whatever it does."""

import pytest
from jinja2.exceptions import TemplateError

from jroute.tasks.prompts import PromptConfig, render
from jroute.tasks.templates import render_template
from jroute.utils.errors import UserError

HELLO = [{"role": "user", "content": "hi "}]


class Tokenizer:
    """What rendering needs of a tokenizer."""

    special_tokens_map = {"eos_token": "<e>"}  # noqa: RUF012
    name_or_path = "/nowhere"

    def __init__(self, template: str):
        self.chat_template = template

    def apply_chat_template(self, conversation, **kwargs):
        raise AssertionError("transformers would render without bounds")

    def get_chat_template(self, chat_template=None, tools=None) -> str:
        return self.chat_template


def rendered(template: str, *, turn: bool = True) -> str:
    return render_template(Tokenizer(template), HELLO, add_generation_prompt=turn)


@pytest.mark.parametrize(
    "template",
    [  # a loop, a single operation, a value that doubles, a recursion
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x'|center(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(50) }}",
        "{{ (9**(9**9))|string|length }}",
    ],
)
def test_too_much_time_or_memory_is_told(template: str) -> None:
    with pytest.raises(UserError, match="template in the tokenizer of /nowhere takes more than"):
        rendered(template)
    assert rendered("{{ messages[0].content }}") == "hi "  # and the next one is rendered


def test_its_own_errors_are_its_own(tmp_path) -> None:
    with pytest.raises(TemplateError, match="no system role"):
        rendered("{{ raise_exception('no system role') }}")
    for template in ("raise_exception('no ' * 10000)", "messages[0]['no \x1b[2J' * 9999].x.x"):
        with pytest.raises(UserError, match="cannot render this prompt") as caught:
            render("1?", PromptConfig(), Tokenizer(f"{{{{ {template} }}}}"))
        assert len(str(caught.value)) < 600 and str(caught.value).isprintable()
    with pytest.raises(TemplateError, match="Range too big"):
        rendered("{% for a in range(10**9) %}{% endfor %}")
    with pytest.raises(TemplateError, match="unsafe"):
        rendered("{{ ''.__class__.__mro__ }}")
    with pytest.raises(
        UserError, match=r"cannot render this prompt .*see the tokenizer of /nowhere"
    ):
        render("1?", PromptConfig(), Tokenizer("{{ raise_exception('no') }}"))


def test_it_is_rendered_as_transformers_does() -> None:
    template = (
        "{% for m in messages %}\n  {% generation %}[{{ m.role }}]{{ m.content }}"
        "{% endgeneration %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}"
        "{{ eos_token }}{{ messages|tojson }}"
    )
    assert rendered(template) == '[user]hi <e>[{"role": "user", "content": "hi "}]'
    assert rendered("<{{ messages[0].content }}>", turn=False) == "<hi "
    assert rendered("<{{ messages[0].content|trim }}>", turn=False) == "<hi"
