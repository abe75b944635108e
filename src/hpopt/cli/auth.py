"""Read the password of the dashboard from a file or the environment.

There is no option for the password itself: all users of a machine can read its command lines.
"""

import os
from pathlib import Path

from hpopt.errors import InputError

# So many random letters and digits withstand thousands of guesses a second.
MIN_LENGTH = 12
_VARIABLE = "HPOPT_DASHBOARD_PASSWORD"


def read_password(file: Path | None) -> str | None:
    """Return the password of the file, else of the environment, or None if there is none.

    Raises InputError, without the password, if it is empty, short or not one line of text.
    """
    # Removed, so that a server that this process starts does not inherit it.
    inherited = os.environ.pop(_VARIABLE, None)
    password = inherited if file is None else _read(file)
    source = _VARIABLE if file is None else f"--password-file: {file}"
    if password is None:
        return None
    if not password:
        raise InputError(f"{source}: the password is empty")
    if not password.isprintable():
        raise InputError(f"{source}: a password is one line of printable characters")
    if len(password) < MIN_LENGTH:
        raise InputError(f"{source}: a password has {MIN_LENGTH} characters or more; `openssl rand -hex 16` makes one")
    return password


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise InputError(f"--password-file: {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--password-file: {file}: not UTF-8") from error
