"""Every error rumfast raises on purpose, each with the exit code the command line ends with."""


class RumfastError(Exception):
    """Base of all errors meant for users; the message is one line that says what to do."""

    exit_code = 1


class UsageError(RumfastError, ValueError):
    """An argument or option is wrong: it names the argument, what was found and what was expected."""

    exit_code = 2


class MismatchError(RumfastError):
    """A store holds results of another dataset or configuration."""

    exit_code = 3


class DataError(RumfastError, ValueError):
    """Images, labels, ids or files that cannot be used as data."""

    exit_code = 4


class StorageError(RumfastError, OSError):
    """Reading or writing failed: disk full, read-only, permission."""

    exit_code = 5


class PartialError(RumfastError):
    """Some work is done and kept, some is missing; the same command resumes."""

    exit_code = 6


class DivergedError(RumfastError):
    """Training reached a loss that is not finite."""

    exit_code = 6
