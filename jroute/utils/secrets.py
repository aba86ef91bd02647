"""What is secret in texts that jroute prints, logs or stores: one function hides it."""

import logging
import os
import re

HIDDEN = "***"

_NAME = (
    r"(?:(?:access|api|auth|amz|aws|bearer|client|hf|id|private|refresh|secret|security|session|x)"
    r"[_-]?)*(?:token|api[_-]?key|secret|password|passwd|pwd|signature|credentials?|access[_-]?key)"
)

_RULES = (
    # User and password: a password may hold slashes.
    (re.compile(r"(\w://)(?:[^\s/]*|[^\s/@]*:\S*)@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?<![\w/.*-])[^\s/:@'\"]+:(?!//)[^\s@]+@(?=[\w.-])"), f"{HIDDEN}@"),
    # The query and what may stand for it, of an address with a scheme or a port.
    (re.compile(r"((?:\w://|\burl: |[\w\])]:\d+(?=[/?]))[^\s?#;]*[?#;])\S+"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)([?&#;]|\b(?<![\w-]))({_NAME})=[^\s&;,'\"]+"), rf"\1\2={HIDDEN}"),
    (re.compile(r"\b(hf_|Bearer |Basic )[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
)
_SECRET_VARIABLE = re.compile(
    r"(?!.*_(FILE|PATH|DIR|SOCK)$)(.*_)?"
    r"(\w*(APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?|KEYS?|PASS|COOKIE)(_.*)?"
    r"|.+_(AUTH|PWD)|.*OTLP(_\w+)?_HEADERS",
    re.IGNORECASE,
)
_SHORTEST = 8  # characters; a shorter value would also stand where it is no secret


def redacted(text: str) -> str:
    """Return a text without the secrets of addresses and of this process's environment.

    Hidden are user, password, query and fragment of an address, tokens of Hugging Face and of
    ``Authorization`` headers, and the values of environment variables that are secret by their
    names (``WANDB_API_KEY``, ``HF_TOKEN``, ``DB_PASS``, ``OTEL_EXPORTER_OTLP_HEADERS``, ...).
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    for secret in _from_environment():
        text = text.replace(secret, HIDDEN)
    return text


def _from_environment() -> list[str]:
    """Return the secrets of the environment, the longest first; of headers, each value."""
    secrets: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.fullmatch(name):
            headers = value.split(",") if name.upper().endswith("HEADERS") else []
            secrets |= {value, *(header.partition("=")[2].strip() for header in headers)}
    return sorted((s for s in secrets if len(s) >= _SHORTEST), key=len, reverse=True)


class RedactingFormatter(logging.Formatter):
    """Format a record without secrets, those of its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return redacted(super().format(record))


def redact_logs() -> None:
    """Hide secrets in what libraries log where nobody has configured logging."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(RedactingFormatter())
