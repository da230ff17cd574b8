"""The cache: one of many processes makes it; it is verified, and made again if it is damaged."""

import multiprocessing
import time

import pytest
from filelock import FileLock

from torch_rnn.data.cache import cached
from torch_rnn.errors import RunError


def make(folder, work):
    with open(folder.parent / "made", "a") as file:
        file.write("x")
    time.sleep(0.2)
    (folder / "array").write_bytes(bytes(100))


def prepare(parent, n=1):
    return cached(parent, "tokens", {"n": n}, make)


def times_made(parent):
    return len((parent / "made").read_text())


def test_made_once_for_each_recipe(tmp_path):
    folder = prepare(tmp_path)
    assert (folder / "array").read_bytes() == bytes(100)
    assert prepare(tmp_path) == folder
    assert times_made(tmp_path) == 1
    assert prepare(tmp_path, n=2) != folder
    assert times_made(tmp_path) == 2


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_damage_is_found_and_repaired(tmp_path, damage, caplog):
    folder = prepare(tmp_path)
    array = folder / "array"
    if damage == "flip":
        array.write_bytes(bytes(50) + b"\x01" + bytes(49))
    elif damage == "truncate":
        array.write_bytes(bytes(99))
    elif damage == "delete":
        array.unlink()
    else:
        (folder / "manifest.json").write_text("{")
    assert (prepare(tmp_path) / "array").read_bytes() == bytes(100)
    assert times_made(tmp_path) == 2
    assert ("manifest.json" if damage == "manifest" else "array") in caplog.text


def test_an_incomplete_folder_is_made_again(tmp_path):
    folder = prepare(tmp_path)
    folder.rename(f"{folder}.part")
    prepare(tmp_path)
    assert times_made(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [folder.name]


def test_a_failure_leaves_no_folder(tmp_path):
    def fail(folder, work):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(RunError, match="disk full"):
        cached(tmp_path, "tokens", {}, fail)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def fail(folder, work):
    (work / "chunk").write_text("x")
    raise OSError("killed")


def prepare_and_fail(parent, n, origin):
    with pytest.raises(RunError, match="killed"):
        cached(parent, "tokens", {"n": n}, fail, origin)


def work_folders(parent):
    return set(parent.glob("*.work"))


def test_the_work_for_a_source_that_has_changed_is_removed(tmp_path):
    done = cached(tmp_path, "tokens", {"n": 0}, make, "a")
    prepare_and_fail(tmp_path, 1, "a")
    (outdated,) = work_folders(tmp_path)
    prepare_and_fail(tmp_path, 2, "b")
    (other,) = work_folders(tmp_path) - {outdated}
    prepare_and_fail(tmp_path, 3, "a")
    assert other in work_folders(tmp_path)
    assert outdated not in work_folders(tmp_path)
    assert len(work_folders(tmp_path)) == 2
    prepare_and_fail(tmp_path, 3, "a")
    assert len(work_folders(tmp_path)) == 2, "the work for an unchanged source is kept"
    assert done.is_dir()


def test_a_work_folder_that_a_process_uses_is_kept(tmp_path):
    prepare_and_fail(tmp_path, 1, "a")
    (work,) = work_folders(tmp_path)
    with FileLock(work.with_suffix(".lock")):
        prepare_and_fail(tmp_path, 2, "a")
        assert (work / "chunk").exists()
    prepare_and_fail(tmp_path, 2, "a")
    assert not work.exists()


def test_many_processes_make_the_cache_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert times_made(tmp_path) == 1


@pytest.mark.bad_input
def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_fix(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be written to .*--data\.cache"):
        prepare(tmp_path / "file")
