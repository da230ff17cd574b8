"""A failed write changes nothing, and what is cleared away is what a write has left."""

import os

import pytest

from torch_rnn.errors import RunError
from torch_rnn.files import check_writable, remove_parts, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda part: part.write_bytes(b"old"))

    def disk_full(part):
        part.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, disk_full)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as error:
        write_atomically(path, lambda part: part.write_bytes(b"new"))
    assert error.value.filename == str(path)


def test_only_the_parts_of_killed_writes_are_removed(tmp_path):
    parts = []
    write_atomically(tmp_path / "file", lambda part: parts.append(part) or part.write_bytes(b"new"))
    for name in (parts[0].name, ".download.part", ".mine.1.part.old", "a.2.part"):
        (tmp_path / name).write_bytes(b"x")
    remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "file",
        ".download.part",
        ".mine.1.part.old",
        "a.2.part",
    }


@pytest.mark.bad_input
def test_a_file_that_cannot_be_written_is_refused_early(tmp_path, monkeypatch):
    check_writable("--out", tmp_path / "new")
    with pytest.raises(RunError, match=r"^--out .* cannot be written, since it is a folder$"):
        check_writable("--out", tmp_path)
    with pytest.raises(RunError, match=r"^--out .*new cannot be written, since there is no folder .*none$"):
        check_writable("--out", tmp_path / "none" / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # an administrator may write everywhere
    with pytest.raises(RunError, match=r"^--out .* cannot be written, since the folder .* is read-only$"):
        check_writable("--out", tmp_path / "new")
