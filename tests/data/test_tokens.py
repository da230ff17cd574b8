"""Tokens do not depend on chunks or processes; preparing them needs little memory and survives a kill."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rich.progress
import torch
from file_trials import fork
from test_formats import write_folder, write_lines, write_parquet, write_shards, write_table

from torch_rnn.data import tokenizing, tokens
from torch_rnn.data.batches import BatchIndices, BucketBatchSampler, Loader, RaggedSequences, Sequences, Shard
from torch_rnn.data.documents import Document, DocumentList
from torch_rnn.data.formats import documents
from torch_rnn.data.grammar import corpus
from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.data.textfiles import TextFiles
from torch_rnn.data.tokenizing import write_tokens
from torch_rnn.data.tokens import grouped_split, read_tokens
from torch_rnn.errors import RunError

FILES = {f"{split}_{name}.npy" for split in ("train", "test") for name in tokens.ARRAYS}


def made(n, seed):
    """Returns n reviews of the grammar."""
    texts, labels = corpus(n, seed)
    return DocumentList(
        [Document(text, "ab"[label], text) for text, label in zip(texts, labels, strict=True)]
    )


def written(folder, splits):
    """Writes the tokens and returns the contents of the files by name."""
    folder.mkdir()
    write_tokens(splits, folder, folder.with_suffix(".work"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokens_are_those_of_the_documents(tmp_path):
    train, test = made(50, 0), made(20, 1)
    names = written(tmp_path / "out", {"train": train, "test": test}).keys()
    assert names == FILES | {"words.json", "classes.json"}
    words = json.loads((tmp_path / "out" / "words.json").read_text())
    counts = Counter(word for document in train.documents for word in tokenize(document.text))
    assert words == Vocabulary.build(counts).words
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["a", "b"]
    for split, source in (("train", train), ("test", test)):
        read = read_tokens(tmp_path / "out", split)
        assert len(read.labels) == len(source.documents)
        for i, document in enumerate(source.documents):
            ids = read.ids[read.offsets[i] : read.offsets[i + 1]]
            assert ids.tolist() == Vocabulary(words).encode(tokenize(document.text)).tolist()
            assert "ab"[read.labels[i]] == document.label


@pytest.mark.parametrize("cores", [1, 2])
def test_chunks_and_processes_make_no_difference(tmp_path, monkeypatch, cores):
    splits = {"train": made(300, 0), "test": made(40, 1)}
    whole = written(tmp_path / "whole", splits)
    monkeypatch.setattr(tokenizing, "CHUNK_SIZE", 2000)
    monkeypatch.setattr(tokenizing, "_cores", lambda: cores)
    assert written(tmp_path / "chunks", splits) == whole
    assert len(list((tmp_path / "chunks.work").iterdir())) > 10


def test_complete_chunks_are_kept_and_damaged_ones_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "CHUNK_SIZE", 2000)
    splits = {"train": made(300, 0), "test": made(40, 1)}
    whole = written(tmp_path / "a", splits)
    work = tmp_path / "b.work"
    (tmp_path / "a.work").rename(work)
    missing, damaged = work / "train-000003.npz", work / "train-000005.npz"
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-20])
    made_again, write_chunk = [], tokenizing._write_chunk
    monkeypatch.setattr(tokenizing, "_cores", lambda: 1)
    monkeypatch.setattr(
        tokenizing, "_write_chunk", lambda path, *rest: (made_again.append(path), write_chunk(path, *rest))
    )
    assert written(tmp_path / "b", splits) == whole
    assert made_again == [missing, damaged]


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet", "shards", "", "memory"])
def test_the_progress_bar_counts_bytes_up_to_its_total(tmp_path, monkeypatch, kind):
    rows = [(f"é ☃ {'long ' * (i % 7)}{i}", "ab"[i % 2]) for i in range(60)]
    if kind == "memory":
        source = DocumentList([Document(text, label, text) for text, label in rows])
    elif kind == "shards":
        source = documents(write_shards(tmp_path / "files", "train", rows, 3))
    else:
        write = {".csv": write_table, ".jsonl": write_lines, ".parquet": write_parquet, "": write_folder}
        source = documents(write[kind](tmp_path / f"files{kind}", rows))
    seen = []

    class Watched(rich.progress.Progress):
        def update(self, task, **fields):
            super().update(task, **fields)
            seen.append((self.tasks[task].completed, self.tasks[task].total))

        def advance(self, task, step=1):
            super().advance(task, step)
            seen.append((self.tasks[task].completed, self.tasks[task].total))

    monkeypatch.setattr(rich.progress, "Progress", Watched)
    monkeypatch.setattr(tokenizing, "CHUNK_SIZE", 1500)
    tokenizing._write_chunks("train", source, tmp_path, tokenize)
    size = sum(len(text.encode()) for text, _ in rows)
    assert source.size == size if kind in ("", "memory") else source.size > size
    assert {total for _, total in seen} == {source.size}
    completed = [position for position, _ in seen[:-1]]  # without the update after the last chunk
    assert len(set(completed)) == len(completed) > 4
    assert completed == sorted(completed)
    assert completed[-1] == source.size


def files(folder):
    return [str(folder / f"{split}.jsonl") for split in ("train", "test")]


def prepare(folder):
    """Starts to prepare the files in a process of its own, and returns the process id."""
    if child := fork():
        return child
    status = 1
    with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
        tokenizing.CHUNK_SIZE = 1 << 15
        TextFiles(*files(folder), cache=str(folder / "cache")).prepare_data()
        status = 0
    os._exit(status)


def contents(folder):
    (cache,) = [path for path in folder.iterdir() if path.is_dir()]
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def test_a_killed_preparation_resumes(tmp_path, monkeypatch):
    for path, n in zip(files(tmp_path), (5000, 200), strict=True):
        write_lines(Path(path), [(document.text, document.label) for document in made(n, n).documents])
    child = prepare(tmp_path)
    while len(chunks := list((tmp_path / "cache").glob("text-*.work/*.npz"))) < 5:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in chunks}
    again = prepare(tmp_path)
    while (ended := os.waitpid(again, os.WNOHANG)) == (0, 0):
        for path, written_at in kept.items():  # which is not written again
            with contextlib.suppress(FileNotFoundError):  # removed at the end
                assert path.stat().st_mtime_ns == written_at
        time.sleep(0.005)
    assert ended == (again, 0)
    monkeypatch.setattr(tokenizing, "CHUNK_SIZE", 1 << 18)
    TextFiles(*files(tmp_path), cache=str(tmp_path / "undisturbed")).prepare_data()
    assert contents(tmp_path / "cache") == contents(tmp_path / "undisturbed")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {"", ".lock"}


def test_the_workers_of_a_killed_preparation_end_too(tmp_path):
    child = fork()
    if child == 0:
        tokenizing._cores = lambda: 2
        with tokenizing._workers(1 << 40) as submit:
            submit(Path(tmp_path / "pid").write_text, "x").result()
            submit(time.sleep, 60)
            time.sleep(60)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    workers = Path(f"/proc/{child}/task/{child}/children")
    if not workers.exists():
        os.kill(child, signal.SIGKILL)
        pytest.skip("this kernel does not list the children of a process")
    pids = workers.read_text().split()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert pids


def test_rare_words_are_dropped_if_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "MAX_WORDS", 10)
    monkeypatch.setattr(tokenizing, "CHUNK_SIZE", 100)
    frequent = " ".join(f"frequent{i}" for i in range(9))
    rows = [Document(f"{frequent} rare{i}", "ab"[i % 2], str(i)) for i in range(60)]
    written(tmp_path / "out", {"train": DocumentList(rows), "test": DocumentList(rows)})
    words = json.loads((tmp_path / "out" / "words.json").read_text())
    assert set(words) == {"<unk>", *frequent.split()}


def test_whole_groups_are_held_out_whatever_the_order():
    keys = np.array([tokens.group_key(f"film{i % 40}") for i in range(400)], dtype=np.uint64)
    fitted, held_out = grouped_split(keys, 0.1)
    assert sorted([*fitted, *held_out]) == list(range(400))
    assert not set(keys[fitted]) & set(keys[held_out])
    assert len(held_out) == 40
    shuffled = np.random.default_rng(0).permutation(keys)
    assert set(shuffled[grouped_split(shuffled, 0.1)[1]]) == set(keys[held_out])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("aab", "abc", "the test data have the label 'c', which the train data lack; they have 'a', 'b'"),
        ("aaa", "a", r"the train data have one label only \('a'\); there must be two or more"),
        ("ab", "", "the test data hold no document"),
    ],
)
def test_unusable_labels_are_refused(tmp_path, train, test, message):
    splits = {
        split: DocumentList([Document("x", label, "x") for label in labels])
        for split, labels in (("train", train), ("test", test))
    }
    with pytest.raises(RunError, match=message):
        written(tmp_path / "out", splits)


def test_labels_that_are_numbers_are_ordered_as_numbers(tmp_path):
    rows = DocumentList([Document("x", str(label), "x") for label in (10, 9, -1)])
    written(tmp_path / "out", {"train": rows, "test": rows})
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["-1", "9", "10"]
    assert read_tokens(tmp_path / "out", "train").labels.tolist() == [2, 1, 0]


MEMORY = """
import resource, sys
from pathlib import Path
from torch_rnn.data import tokenizing
from torch_rnn.data.cache import cached
from torch_rnn.data.formats import documents

folder = Path(sys.argv[1])

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def prepare(name):
    splits = {"train": documents(folder / f"{name}.csv"), "test": documents(folder / "few.csv")}
    cached(folder, name, {}, lambda part, work: tokenizing.write_tokens(splits, part, work))

peak, read_chunk = 0, tokenizing._read_chunk
def watched(*args):
    global peak
    peak = max(peak, resident())
    return read_chunk(*args)

tokenizing.CHUNK_SIZE, tokenizing._read_chunk = 1 << 19, watched
prepare("few")
before, peak = resident(), 0
prepare("many")
print(max(peak, resident()) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_texts_are_not_held_in_memory(tmp_path):
    text = " ".join(f"word{i % 977}" for i in range(2000))
    for name, n in (("few", 2), ("many", 1000)):
        with open(tmp_path / f"{name}.csv", "w") as file:
            file.write("text,label\n")
            for i in range(n):
                file.write(f"{i} {text},{i % 2}\n")
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True)
    assert int(run.stdout.splitlines()[-1]) < (tmp_path / "many.csv").stat().st_size / 2


def test_a_large_file_of_ids_is_not_held_in_memory(tmp_path, monkeypatch):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    n, T = 20_000, 1000
    np.save(tmp_path / "train_ids.npy", np.tile(np.arange(T, dtype=np.int32), n))  # 80 MB
    np.save(tmp_path / "train_offsets.npy", np.arange(n + 1) * T)
    for name in ("labels", "keys"):
        np.save(tmp_path / f"train_{name}.npy", np.zeros(n, dtype=np.int32))
    monkeypatch.setattr(tokens, "MAX_IN_MEMORY", 1 << 22)
    train = read_tokens(tmp_path, "train")
    ragged = RaggedSequences(train.ids, train.offsets, np.arange(n), maxlen=T - 10, max_features=T)
    loader = Loader(
        Sequences(ragged, train.labels, 0.5), BucketBatchSampler(ragged.lengths, 64, 0, shuffle=True)
    )
    before, peak = resident(), 0
    assert train.ids.min(initial=0) == 0
    for batch in loader:
        assert (batch.x.diff() > 0).sum() == batch.lengths.sum() - len(batch.lengths)
        assert int(batch.x[0, 0]) >= 10
        peak = max(peak, resident() - before)
    assert peak < 40e6


def test_batches_are_equal_from_memory_and_from_a_file(tmp_path, monkeypatch):
    written(tmp_path / "out", {"train": made(100, 0), "test": made(10, 1)})
    indices, batches = BatchIndices((1, 0, 0), np.array([5, 3, 99, 7])), []
    for limit, in_memory in ((1 << 28, True), (16, False)):
        monkeypatch.setattr(tokens, "MAX_IN_MEMORY", limit)
        train = read_tokens(tmp_path / "out", "train")
        assert isinstance(train.ids, np.ndarray) == in_memory
        ragged = RaggedSequences(train.ids, train.offsets, np.arange(100), maxlen=12, max_features=30)
        batches.append([Sequences(ragged, train.labels, 0.3, Shard(rank, 2))[indices] for rank in range(2)])
        assert ragged[3].tolist() == ragged.take(np.array([3]), np.arange(12), np.array([12])).tolist()
        assert train.ids.min(initial=9) == 1
    for part, part_from_file in zip(*batches, strict=True):
        assert all(torch.equal(*tensors) for tensors in zip(part[:3], part_from_file[:3], strict=True))
