"""The one exception whose message is meant for users."""


class UserError(Exception):
    """Invalid input. The message says in one sentence what is wrong, where, and what to do.

    Commands print it as ``error: ...`` and exit with status 2. Any other exception is a defect of
    jroute and keeps its traceback.
    """
