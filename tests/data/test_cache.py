"""The cache: made once by one of many processes, verified, and made again if it is damaged."""

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


def open_it(parent, made_from=1):
    return cached(parent, "tokens", {"n": made_from}, make)


def times_made(parent):
    return len((parent / "made").read_text())


def test_made_once_for_each_recipe(tmp_path):
    folder = open_it(tmp_path)
    assert (folder / "array").read_bytes() == bytes(100)
    assert open_it(tmp_path) == folder
    assert times_made(tmp_path) == 1
    assert open_it(tmp_path, made_from=2) != folder
    assert times_made(tmp_path) == 2


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_damage_is_found_and_repaired(tmp_path, damage, caplog):
    folder = open_it(tmp_path)
    array = folder / "array"
    if damage == "flip":
        array.write_bytes(bytes(50) + b"\x01" + bytes(49))
    elif damage == "truncate":
        array.write_bytes(bytes(99))
    elif damage == "delete":
        array.unlink()
    else:
        (folder / "manifest.json").write_text("{")
    assert (open_it(tmp_path) / "array").read_bytes() == bytes(100)
    assert times_made(tmp_path) == 2
    assert ("manifest.json" if damage == "manifest" else "array") in caplog.text


def test_a_folder_from_a_killed_start_is_made_again(tmp_path):
    folder = open_it(tmp_path)
    folder.rename(f"{folder}.part")
    open_it(tmp_path)
    assert times_made(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [folder.name]


def test_a_failure_leaves_nothing(tmp_path):
    def fail(folder, work):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(RunError, match="disk full"):
        cached(tmp_path, "tokens", {}, fail)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def fail(folder, work):
    (work / "chunk").write_text("x")
    raise OSError("killed")


def killed(parent, n, origin):
    with pytest.raises(RunError, match="killed"):
        cached(parent, "tokens", {"n": n}, fail, origin)


def works(parent):
    return set(parent.glob("*.work"))


def test_work_of_a_source_that_has_changed_is_removed(tmp_path):
    done = cached(tmp_path, "tokens", {"n": 0}, make, "a")
    killed(tmp_path, 1, "a")
    (outdated,) = works(tmp_path)
    killed(tmp_path, 2, "b")
    (other,) = works(tmp_path) - {outdated}
    killed(tmp_path, 3, "a")
    assert other in works(tmp_path)
    assert outdated not in works(tmp_path)
    assert len(works(tmp_path)) == 2
    killed(tmp_path, 3, "a")
    assert len(works(tmp_path)) == 2, "the work of an unchanged source is kept"
    assert done.is_dir()


def test_work_that_a_process_is_using_is_kept(tmp_path):
    killed(tmp_path, 1, "a")
    (work,) = works(tmp_path)
    with FileLock(work.with_suffix(".lock")):
        killed(tmp_path, 2, "a")
        assert (work / "chunk").exists()
    killed(tmp_path, 2, "a")
    assert not work.exists()


def test_many_processes_at_once_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_it, args=(tmp_path,)) for _ in range(4)]
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
        open_it(tmp_path / "file")
