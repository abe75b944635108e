"""Define the exceptions of hpopt and their exit codes.

Each message is one line: what, where, the value, and the nearest valid one.
"""

import errno
from collections.abc import Iterable
from difflib import get_close_matches

# Errors of a disk that is full, broken or unmounted; another machine, or this one later, can continue.
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}


class HpoptError(Exception):
    """A command failed while it ran."""

    exit_code = 1


class InputError(HpoptError):
    """An input was refused before anything ran."""

    exit_code = 2


class StudyFileError(InputError):
    """A study file was refused; the message names file, key and value."""


class ConfigError(InputError):
    """A config was refused; `key` is the parameter that causes the problem."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class DatabaseError(InputError):
    """The database is unreachable or not ready. The message never has a password."""


class DatabaseUnreachableError(DatabaseError):
    """The database cannot be reached for the moment; the same command can succeed later."""

    exit_code = 75


class DatabasePermissionError(InputError):
    """The user of the database may not do what was asked for."""


class DatabaseLostError(HpoptError):
    """The database stayed unreachable; a trial can continue from its checkpoint in another process."""

    exit_code = 75


class DeviceError(HpoptError):
    """The device cannot be used by this process any more; the trial was requeued, and a new process can continue."""

    exit_code = 75


class NoAnswerError(HpoptError):
    """No trial is complete yet."""

    exit_code = 3


class Interrupted(HpoptError):  # noqa: N818 - an outcome of an attempt, not an error.
    """Training was asked to stop: its checkpoint is written, and the trial can continue from it on another worker."""

    exit_code = 75


class Diverged(HpoptError):  # noqa: N818 - an outcome of a trial, not an error.
    """The loss is not finite, or far above its first value."""


class Fenced(HpoptError):  # noqa: N818 - an outcome of an attempt, not an error.
    """The trial was reassigned to another worker after the heartbeat of this one had expired."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return the nearest valid word as `; did you mean 'x'?`, else the list of valid ones."""
    names = sorted(valid)
    near = get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
