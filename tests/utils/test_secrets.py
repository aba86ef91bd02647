"""Secrets do not leave the process in words."""

import logging

import pytest

from jroute.utils.cli import command
from jroute.utils.errors import UserError
from jroute.utils.secrets import RedactingFormatter, redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:pass@host:4318/v1?token=s3cr3t", "http://***@host:4318/v1?***"),
        ("at http://us%65r:p'a@ss@h/x#s3cr3t; go on", "at http://***@h/x#*** go on"),
        ("'ftp://token@h/y?s3cr3t' is", "'ftp://***@h/y?*** is"),
        ("exceeded with url: /v1?s3cr3t (Caused by X)", "exceeded with url: /v1?*** (Caused by X)"),
        ("hf_abcdefgh12345678 is gone", "hf_*** is gone"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer ***"),
        ("http://u:p/w@host/v1", "http://***@host/v1"),
        ("at 'u:pw@host:4318/v1?token=abc'", "at '***@host:4318/v1?***"),
        ("u:p/w@host", "***@host"),
        ("host:4318/v1?anything=abc", "host:4318/v1?***"),
        ("http://host/v1;token=abc", "http://host/v1;***"),
        ("/v1;token=abc, api_key=abc&b=1", "/v1;token=***, api_key=***&b=1"),
        ("?X-Amz-Signature=abc", "?X-Amz-Signature=***"),
        # What is no secret stays.
        (
            "max_tokens=128, eos_token=2; time 12:30 a@b",
            "max_tokens=128, eos_token=2; time 12:30 a@b",
        ),
        ("git@github.com:x/y.git f.py:3: a?b", "git@github.com:x/y.git f.py:3: a?b"),
        (
            "mail a@b.c, what? http://host/path, runs/a?b",
            "mail a@b.c, what? http://host/path, runs/a?b",
        ),
        ("https://github.com/x/y/issues/1", "https://github.com/x/y/issues/1"),
    ],
)
def test_addresses_and_tokens(text: str, expected: str):
    assert redacted(text) == expected


def test_the_environment(monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "WANDB_API_KEY": "wandb-key-1",
        "JUDGMENT_API_KEY": "judgment-key-1",
        "HF_TOKEN": "token-of-hf",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=header-key-1, authorization=header-key-2",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-key=header-key-3",
        "AWS_SECRET_ACCESS_KEY": "aws-secret-1",
        "LANGFUSE_KEY": "langfuse-1",
        "DB_PASS": "database-1",
        "PGPASSWORD": "postgres-1",
        "my_app_secret": "lower-case-1",
        "OLDPWD": "/data/before",
        "SSH_KEY_PATH": "/data/keys",
        "TOKENIZERS_PARALLELISM": "tokenizers",
        "MAX_TOKEN": "128",  # too short to be a secret
        "JROUTE_DATA": "/data/folder",
    }.items():
        monkeypatch.setenv(name, value)
    text = "wandb-key-1 judgment-key-1 token-of-hf header-key-1 header-key-2 header-key-3 128"
    more = "aws-secret-1 langfuse-1 database-1 postgres-1 lower-case-1"
    assert redacted(more) == "*** *** *** *** ***"
    assert redacted("/data/before /data/keys tokenizers") == "/data/before /data/keys tokenizers"
    assert redacted(f"{text} /data/folder") == "*** *** *** *** *** *** 128 /data/folder"


def test_messages_logs_and_help(capsys: pytest.CaptureFixture[str]):
    @command
    def main(argv: object) -> None:
        raise UserError("unexpected argument 'http://user:pass@host/?s3cr3t'")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: unexpected argument 'http://***@host/?***\n"
    record = logging.LogRecord("x", 30, "", 0, "%s fails", ("http://user:pass@host",), None)
    assert RedactingFormatter("%(message)s").format(record) == "http://***@host fails"
