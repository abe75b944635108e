"""The command line within the process of the tests, with a database of the test's own."""

import os
import signal
import sys
from contextlib import closing, contextmanager
from typing import NamedTuple

import pytest

from hpopt.cli.main import main
from hpopt.storage import studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file

STUDY = """
name = "answer"
[budget]
trials = 3
[search_space]
learning_rate = { low = 1e-3, high = 0.3, log = true }
"""


class Result(NamedTuple):
    """What a command left: its exit code and its output."""

    code: int
    stdout: str
    stderr: str


class CommandLine:
    """Runs commands as the program does, without the seconds that a process takes to import."""

    def __init__(self, capsys, environment=None):
        self.environment = environment or {}
        self._capsys = capsys

    def __call__(self, *arguments, **environment):
        """Run a command in an environment without variables of the user's."""
        self._capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch, _kept_signal_handlers():
            patch.setattr(sys, "argv", ["hpopt", *map(str, arguments)])
            patch.setattr(sys, "path", list(sys.path))
            for name in [name for name in os.environ if name.startswith("HPOPT_")]:
                patch.delenv(name)
            for name, value in {**self.environment, **environment}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                main()
        return Result(end.value.code, *self._capsys.readouterr())

    def output(self, *arguments):
        """Run a command that succeeds without a word on standard error, and return its standard output."""
        result = self(*arguments)
        assert (result.code, result.stderr) == (0, ""), result
        return result.stdout

    def refused(self, *arguments, **environment):
        """Run a command that refuses its input, and return its one line on standard error."""
        result = self(*arguments, **environment)
        assert (result.code, result.stdout) == (2, ""), result
        (line,) = result.stderr.splitlines()
        return line


@contextmanager
def _kept_signal_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "answer.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def hpopt(capsys):
    """The command line without a database."""
    return CommandLine(capsys)


@pytest.fixture
def migrated(capsys, migrated_url):
    """The command line on a database without studies."""
    return CommandLine(capsys, {"HPOPT_STORAGE": migrated_url})


@pytest.fixture
def created(migrated, migrated_url):
    """The command line on a database with the study `answer`."""
    with closing(Database(migrated_url)) as database:
        studies.create_study(database, parse_study_file(STUDY, "answer.toml"))
    return migrated
