"""The one exception type whose message is meant for the user."""


class UserError(ValueError):
    """Bad input from outside: a configuration, a file, a command line.

    The message names the field, the value, the rule and the remedy. Entry points print it as one line and exit with 2;
    nothing has been written by then.
    """
