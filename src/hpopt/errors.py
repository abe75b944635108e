"""Owns what can go wrong in hpopt, and the exit code of each. Leaves the printing to cli/.

Each message is one line: what, where, the value, and the nearest right one.
"""

import errno
from collections.abc import Iterable
from difflib import get_close_matches

# Of a disk that is full, broken or gone; another machine, or this one later, can go on.
DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}


class HpoptError(Exception):
    """Something failed while running."""

    exit_code = 1


class InputError(HpoptError):
    """The input was refused before anything was spent."""

    exit_code = 2


class StudyFileError(InputError):
    """A study file was refused; the message names file, key and value."""


class ConfigError(InputError):
    """A config was refused; `key` is the parameter at fault."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class DatabaseError(InputError):
    """The database cannot be reached or is not ready; the message never holds a password."""


class DatabaseLostError(HpoptError):
    """The database did not come back; what was running can go on from its checkpoint elsewhere."""

    exit_code = 75


class DeviceError(HpoptError):
    """The device is of no use to this process any more; the trial is handed back, and a new process can go on."""

    exit_code = 75


class NoAnswerError(HpoptError):
    """There is no finished trial to answer with yet."""

    exit_code = 3


class Interrupted(HpoptError):  # noqa: N818 - the outcome of an attempt, not a mistake.
    """The attempt was asked to stop; its checkpoint is written and the trial can go on elsewhere."""

    exit_code = 75


class Diverged(HpoptError):  # noqa: N818 - a result of the trial, not a mistake.
    """The loss is not finite or far above where it started."""


class Fenced(HpoptError):  # noqa: N818 - the outcome of an attempt, not a mistake.
    """The trial was handed on to another worker while this one was silent."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Name the nearest known word as `; did you mean 'x'?`, or list what is known."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
