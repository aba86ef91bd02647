"""Chat templates, rendered within bounds of time and memory.

A template is a program from whoever made the model; see ``template_worker`` for how it is bounded.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jinja2.exceptions import TemplateError

from jroute.utils.errors import UserError, one_line

SECONDS = 0.5
"""Processor time that one rendering may take; usual templates take a thousandth of it."""

MEMORY = 128 * 2**20
"""Bytes that a rendering may take."""

_OPEN_END = "\ufdd1"
"""Marks the end of a message that stays open: a character that no text may use for itself."""


@runtime_checkable
class TemplateTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that rendering uses."""

    special_tokens_map: Any

    def get_chat_template(self, chat_template: Any = None, tools: Any = None) -> str:
        """Return the template, or raise a ``ValueError`` if there is none."""
        ...


def render_template(
    tokenizer: TemplateTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    **variables: Any,
) -> str:
    """Render messages with a tokenizer's chat template, as transformers does.

    Args:
        tokenizer: A Hugging Face tokenizer.
        messages: The turns.
        add_generation_prompt: Whether to open the model's turn; otherwise the last message stays
            open.
        **variables: Further variables of the template.

    Raises:
        UserError: The template takes too much time or memory.
        TemplateError: The template refuses the messages, or fails.
        ValueError: There is no template.
    """
    template = tokenizer.get_chat_template()
    turns = [{k: v for k, v in turn.items() if v is not None} for turn in messages]
    if not add_generation_prompt:
        turns[-1]["content"] += f"{_OPEN_END} "
    text = _worker().render(
        template,
        {
            **tokenizer.special_tokens_map,
            "messages": turns,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        },
        lambda: template_file(tokenizer),
    )
    if add_generation_prompt:
        return text
    if _OPEN_END not in text:
        raise TemplateError("the template does not show the last message, which is to stay open")
    start, _, end = text.rpartition(_OPEN_END)
    return start if end.startswith(" ") else start.rstrip()  # the template trims messages


def template_file(tokenizer: Any) -> str:
    """Return the file that the template of a tokenizer comes from."""
    folder = Path(str(getattr(tokenizer, "name_or_path", "")))
    names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    found = [folder / name for name in names if (folder / name).is_file()]
    return str(found[0]) if found else f"the tokenizer of {folder}"


class _Worker:
    """The process that renders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._template: str | None = None
        self.owner = os.getpid()
        atexit.register(self.close)

    def render(self, template: str, variables: Mapping[str, Any], file: Any) -> str:
        with self._lock:
            answer = self._ask(template, variables)
        if "text" in answer:
            return answer["text"]
        if "error" in answer:
            raise TemplateError(one_line(answer["error"]))
        raise UserError(
            f"the chat template in {file()} takes more than {SECONDS:g} s of processor time or "
            f"{MEMORY // 2**20} MiB of memory for one conversation; mend it, or copy the one of "
            "the model's release there"
        )

    def _ask(self, template: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin and self._process.stdout
        known = template == self._template  # sent only once
        request = {"template": None if known else template, "variables": variables}
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
            self._template = template
            return json.loads(line)
        except (BrokenPipeError, ValueError):  # the system has ended it
            self.close()
            return {"excess": "time"}
        except BaseException:  # interrupted: its answer must not be taken for another's
            self.close()
            raise

    def _start(self) -> None:
        self._template = None
        command = [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))]
        self._process = subprocess.Popen(
            [*command, str(SECONDS), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
        )

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


_WORKERS: list[_Worker] = []


def _worker() -> _Worker:
    """Return the worker of this process; a fork does not share its parent's."""
    if not _WORKERS or _WORKERS[-1].owner != os.getpid():
        _WORKERS.append(_Worker())
    return _WORKERS[-1]
