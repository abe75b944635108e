"""Write and read checkpoint files: atomic, and readable only by the run they belong to."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

_logger = logging.getLogger(__name__)


def save_checkpoint(path: Path, belongs_to: dict[str, Any], content: dict[str, Any]) -> None:
    """Write a checkpoint; `path` holds the old or the new one at every moment, also after a power failure.

    `belongs_to` identifies the run: load_checkpoint ignores the file unless it is given the same. `belongs_to` and
    `content` contain tensors and plain values only. Raises OSError if the disk fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"belongs_to": belongs_to, "content": content}, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # On a full disk the incomplete file would take space from other processes.
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    # The rename is durable only after the directory is written too.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_checkpoint(path: Path, belongs_to: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of a checkpoint, with all tensors on the CPU.

    Returns None if there is no file, and with a warning if it is damaged or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        other, content = dict(checkpoint["belongs_to"]), dict(checkpoint["content"])
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _logger.warning("%s: ignored, damaged checkpoint (%s); training starts from the beginning", path, reason)
        return None
    differing = sorted(key for key in other.keys() | belongs_to.keys() if other.get(key) != belongs_to.get(key))
    if differing:
        names = ", ".join(differing)
        _logger.warning("%s: ignored, it differs in %s; training starts from the beginning", path, names)
        return None
    restored: dict[str, Any] = content
    return restored
