"""Owns the checkpoint file: written whole or not at all, read only by the run it belongs to.

Leaves its content to pretrain.py.
"""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

_logger = logging.getLogger(__name__)


def save_checkpoint(path: Path, belongs_to: dict[str, Any], content: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds the old one or the new one at every moment, also when the power fails.

    `belongs_to` is what a later run must share to go on from here; both hold tensors and plain values only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"belongs_to": belongs_to, "content": content}, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # On a full disk the rest of it would be in the way of everybody.
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    # The new name lies in the folder, which has a cache of its own.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path, belongs_to: dict[str, Any]) -> dict[str, Any] | None:
    """Read the content of a checkpoint; None if there is none, and after a warning if it is torn or another run's."""
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        theirs, content = checkpoint["belongs_to"], checkpoint["content"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _logger.warning("%s: refused, not a whole checkpoint (%s); the run starts over", path, reason)
        return None
    differing = sorted(key for key in theirs.keys() | belongs_to.keys() if theirs.get(key) != belongs_to.get(key))
    if differing:
        _logger.warning("%s: refused, it differs in %s; the run starts over", path, ", ".join(differing))
        return None
    restored: dict[str, Any] = content
    return restored
