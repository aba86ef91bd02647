"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do.

    The command lines print it as ``error: ...`` and exit with status 2; anything else that is
    raised is a defect of jroute and keeps its traceback.
    """
