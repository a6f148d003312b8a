"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """Bad input: one sentence that names the file or field and the remedy.

    The command line prints it without a traceback and exits 1.
    """
