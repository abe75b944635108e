"""Owns reading a study file: from text to a StudyFile that is in order, or one line saying what is not."""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from hpopt.errors import ConfigError, StudyFileError, did_you_mean
from hpopt.study.checks import check_sources, check_study
from hpopt.study.file import StudyFile
from hpopt.study.messages import translate


def read_study_file(path: Path) -> StudyFile:
    """Read and check a study file; raises StudyFileError with one line saying what, where and the nearest right one."""
    try:
        # utf-8-sig, because editors on Windows put a byte order mark in front.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        siblings = [sibling.name for sibling in path.parent.glob("*.toml")]
        raise StudyFileError(f"{path}: no such file{did_you_mean(path.name, siblings)}") from error
    except OSError as error:
        raise StudyFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path}: not UTF-8 (at byte {error.start})") from error
    study = parse_study_file(text, str(path))
    try:
        check_sources(study)
    except ConfigError as error:
        raise StudyFileError(f"{path}: {error}") from error
    return study


def read_study_text(path: Path) -> str:
    """Give the text of a study file that is in order; raises StudyFileError."""
    read_study_file(path)
    return path.read_text(encoding="utf-8-sig")


def parse_study_file(text: str, source: str) -> StudyFile:
    """Check the text of a study file; `source` is the name that the message of StudyFileError starts with."""
    try:
        study = StudyFile.model_validate(tomllib.loads(text))
        check_study(study)
    except ValidationError as error:
        # A misspelled key is missing as well: the unknown one is what to correct.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        message = translate(problems[0], StudyFile)
    except ConfigError as error:
        message = str(error)
    except ValueError as error:
        message = f"not TOML: {error}"
    else:
        return study
    raise StudyFileError(" ".join(f"{source}: {message}".splitlines()))
