import logging

import pytest
import torch

from hpopt.training.checkpoint import load_checkpoint, save_checkpoint

RUN = {"seed": 0, "learning_rate": 0.1}
CONTENT = {"model": {"w": torch.arange(3.0)}, "progress": {"step": 7, "metrics": None}}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", RUN, CONTENT)
    return tmp_path / "checkpoint.pt"


def test_content_is_restored_and_no_other_file_is_left(path):
    content = load_checkpoint(path, RUN)
    assert torch.equal(content["model"]["w"], CONTENT["model"]["w"])
    assert content["progress"] == CONTENT["progress"]
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_missing_checkpoint_causes_no_warning(tmp_path, caplog):
    """Every run starts without one."""
    assert load_checkpoint(tmp_path / "checkpoint.pt", RUN) is None
    assert not caplog.records


@pytest.mark.parametrize("kept_share", [0.0, 0.3, 0.7, 0.99])
def test_truncated_checkpoint_is_ignored_with_its_path(path, kept_share, caplog):
    """After a full disk or an incomplete copy the run starts again; the worker must not fail."""
    path.write_bytes(path.read_bytes()[: int(kept_share * path.stat().st_size)])
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path, RUN) is None
    assert str(path) in caplog.text
    assert "training starts from the beginning" in caplog.text


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02h\x00.",
        b"\x80\x02t.",
        b"\x80\x02K\x01a.",
        b"PK\x03\x04",
        b"\x80\x02(",
        b"\xff" * 99,
    ],
)
def test_a_damaged_pickle_is_ignored(path, damaged, caplog):
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path, RUN) is None
    assert "damaged checkpoint" in caplog.text


@pytest.mark.parametrize("content", [5, [1], {"belongs_to": 5, "content": {}}, {"belongs_to": RUN, "content": 5}])
def test_a_file_of_another_program_is_ignored(path, content):
    torch.save(content, path)
    assert load_checkpoint(path, RUN) is None


def test_checkpoint_of_another_run_is_ignored_with_what_differs(path, caplog):
    """Continuing from another trial's weights would attribute its training to these parameters."""
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path, {**RUN, "learning_rate": 0.2}) is None
    assert "differs in learning_rate" in caplog.text


def test_checkpoint_that_executes_code_is_ignored(path, tmp_path):
    """Checkpoints are copied between machines; unpickling one must never execute anything."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"belongs_to": RUN, "content": Trap()}, path)
    assert load_checkpoint(path, RUN) is None
    assert not (tmp_path / "executed").exists()


def test_failed_write_leaves_the_old_checkpoint(path):
    """It is written under another name, which replaces the old one only when it is complete."""
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, RUN, {"model": lambda: None})
    assert load_checkpoint(path, RUN) is not None
