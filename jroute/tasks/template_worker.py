"""Render chat templates in a process of its own, which the system stops when it takes too much.

A chat template is a program that comes with a model. Its sandbox keeps it from files and from
Python, but not from taking all time and all memory. This process therefore sets itself limits that
the system enforces, whatever the template does: of processor time for each rendering, and of memory
for the whole process. ``templates`` starts it and talks to it: a line of JSON each way.

It is run by its path and imports neither this package nor transformers, so it starts at once. The
environment is the one in which transformers renders chat templates.
"""

import contextlib
import json
import resource
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

LONGEST = 2**24
"""Characters of a prompt; a context of a million tokens has fewer."""


class Generation(jinja2.ext.Extension):
    """``{% generation %}``, which marks the assistant's text for training, has no effect here."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        """Return what is between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore, as in transformers."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Set an attribute."""
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def to_json(  # noqa: D103 - a filter
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def refuse(message: str) -> None:
    """Raise what a template raises."""
    raise jinja2.exceptions.TemplateError(message)


def environment() -> jinja2.Environment:
    """Return the environment of chat templates."""
    result = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    result.filters["tojson"] = to_json
    result.globals["raise_exception"] = refuse
    result.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    result.globals["namespace"] = Namespace
    result.globals["dict"] = dict
    return result


def main() -> None:
    """Answer requests until there are no more.

    Arguments are the seconds of processor time for one rendering and the bytes of memory above
    those that the process needs itself. The system ends the process when a rendering takes longer.
    """
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with contextlib.suppress(ValueError, OSError):  # not on every system
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    templates, source = environment(), None
    template: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if request["template"] is not None and request["template"] != source:
                source, template = request["template"], None
                template = templates.from_string(source)
            text = template.render(**request["variables"])
            answer = {"text": text} if len(text) <= LONGEST else {"excess": "memory"}
        except MemoryError:
            answer = {"excess": "memory"}
        except Exception as error:
            answer = {"error": f"{error}" or type(error).__name__}
        content = json.dumps(answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(content, flush=True)


if __name__ == "__main__":
    main()
