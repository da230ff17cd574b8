"""Each format yields the same documents from any position; errors name the line or the row."""

import csv
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torch_rnn.data.documents import Document
from torch_rnn.data.formats import documents
from torch_rnn.errors import RunError

TEXTS = [
    ("plain", "a"),
    ('with "quotes", commas,\nand a line\r\nbreak', "b"),
    ("", "a"),
    ("tab\tand  é ☃ \u2028 line separator", "b"),
    ("last", "7"),
]


def write_table(path, rows=TEXTS, header=("id", "label", "text"), delimiter=",", encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows((i, label, text) for i, (text, label) in enumerate(rows))
    return path


def write_lines(path, rows=TEXTS):
    lines = [
        json.dumps({"label": int(label) if label == "7" else label, "text": text}) for text, label in rows
    ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(path, rows=TEXTS, **options):
    texts, labels = ([row[i] for row in rows] for i in (0, 1))
    table = pa.table({"id": pa.array(range(len(rows))), "label": labels, "text": texts})
    pq.write_table(table, path, **options)
    return path


def write_folder(path, rows=TEXTS):
    for i, (text, label) in enumerate(rows):
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / f"{i}.txt").write_bytes(text.encode())
    return path


def write(path, kind):
    path = path / f"texts{kind}"
    if kind == "":
        return write_folder(path)
    if kind == ".jsonl":
        return write_lines(path)
    if kind == ".parquet":
        return write_parquet(path, row_group_size=2)
    return write_table(path, delimiter="\t" if kind == ".tsv" else ",")


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet", ""])
def test_every_format_yields_the_documents_from_any_position(tmp_path, kind):
    source = documents(write(tmp_path, kind))
    read = list(source.read())
    assert sorted(document[:2] for document, _ in read) == sorted(TEXTS)
    assert all(document.group == document.text for document, _ in read)
    for i, (_, position) in enumerate(read):
        assert list(source.read(position)) == read[i + 1 :]


def test_a_byte_order_mark_is_not_part_of_the_header(tmp_path):
    path = write_table(tmp_path / "texts.csv", header=("text", "label"), encoding="utf-8-sig", rows=[])
    path.write_bytes(path.read_bytes() + b"good,1\n")
    assert [document for document, _ in documents(path).read()] == [Document("good", "1", "good")]


def test_columns_may_have_other_names(tmp_path):
    path = write_table(tmp_path / "texts.csv", header=("id", "sentiment", "review"))
    assert len(list(documents(path, "review", "sentiment").read())) == len(TEXTS)


def test_a_changed_file_has_another_fingerprint(tmp_path):
    for kind in (".csv", ".jsonl"):
        path = write(tmp_path, kind)
        before = documents(path).fingerprint()
        assert documents(path).fingerprint() == before
        path.write_text(path.read_text() + "\n")
        assert documents(path).fingerprint() != before


def test_a_parquet_file_has_the_documents_of_the_csv_file(tmp_path):
    rows = [(f"{text} {i}", label) for i in range(200) for text, label in TEXTS]
    expected = [document for document, _ in documents(write_table(tmp_path / "a.csv", rows)).read()]
    source = documents(write_parquet(tmp_path / "a.parquet", rows, row_group_size=300))
    read = list(source.read())
    assert [document for document, _ in read] == expected
    for i in (0, 255, 256, 298, 299, 300, 301, 998, 999):  # at the ends of batches and of row groups
        assert list(source.read(read[i][1])) == read[i + 1 :]


@pytest.mark.parametrize(
    "label",
    [
        pa.array([3, -1], pa.int64()),
        pa.array([3, -1], pa.int8()),
        pa.array(["3", "-1"], pa.large_string()),
        pa.array(["3", "-1"]).dictionary_encode(),
    ],
)
def test_parquet_labels_may_be_whole_numbers_or_any_kind_of_text(tmp_path, label):
    text = pa.array(["good", "bad"], pa.large_string())
    pq.write_table(pa.table({"text": text, "label": label}), tmp_path / "a.parquet")
    read = [document for document, _ in documents(tmp_path / "a.parquet").read()]
    assert read == [Document("good", "3", "good"), Document("bad", "-1", "bad")]


def test_a_row_group_is_not_held_in_memory(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", [(f"{i} " + "word " * 500, "a") for i in range(8000)], compression="none"
    )
    assert pq.ParquetFile(path).num_row_groups == 1
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in documents(path).read())
    assert peak < path.stat().st_size / 2


def write_shards(folder, split, rows, n):
    folder.mkdir(exist_ok=True)
    for i in range(n):
        write_parquet(folder / f"{split}-{i:05}-of-{n:05}.parquet", rows[i::n], row_group_size=3)
    return folder


def test_shards_are_read_in_the_order_of_their_names_from_any_position(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(20)]
    source = documents(write_shards(tmp_path / "shards", "train", rows, 2))
    read = list(source.read())
    assert [document[:2] for document, _ in read] == rows[0::2] + rows[1::2]
    for i, (_, position) in enumerate(read):
        assert list(source.read(position)) == read[i + 1 :]


def test_each_split_in_a_folder_has_its_own_shards(tmp_path):
    rows = {"train": [("x", "a")] * 4, "test": [("y", "b")] * 3}
    for split in rows:
        write_shards(tmp_path, split, rows[split], 2)
    for split in rows:
        source = documents(tmp_path, split=split)
        assert [document[:2] for document, _ in source.read()] == rows[split]


def test_shards_without_a_split_in_their_names_are_all_read(tmp_path):
    for i in range(2):
        write_parquet(tmp_path / f"{i:04}.parquet")
    assert len(list(documents(tmp_path, split="test").read())) == 2 * len(TEXTS)


def test_changed_shards_or_columns_have_another_fingerprint(tmp_path):
    before = documents(write_shards(tmp_path, "train", TEXTS, 2)).fingerprint()
    assert documents(tmp_path).fingerprint() == before
    assert documents(tmp_path, "text", "id").fingerprint() != before
    write_parquet(tmp_path / "train-00001-of-00002.parquet", TEXTS[:1])
    assert documents(tmp_path).fingerprint() != before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["x", None], "label": [1, 2]}, "a.parquet: row 2 has text None; it must be a text"),
        ({"text": ["x", "y"], "label": ["a", None]}, "a.parquet: row 2 has label None; it must be a word or"),
        ({"text": ["x", "y"], "label": [0.5, 1.0]}, r"a.parquet: row 1 has label 0\.5; it must be a word or"),
        ({"text": ["x", "y"], "label": [True, False]}, "a.parquet: row 1 has label True"),
        ({"text": [b"x", b"y"], "label": [1, 2]}, "a.parquet: row 1 has text b'x'; it must be a text"),
        (
            {"review": ["x"], "label": [1]},
            "a.parquet has the columns review, label, and no text; name",
        ),
    ],
)
def test_a_malformed_parquet_table_is_an_error_that_names_the_row(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(RunError, match=message):
        list(documents(tmp_path / "a.parquet").read())


@pytest.mark.bad_input
def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    text = pa.array([b"x", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": text, "label": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(RunError, match=r"a\.parquet: row 2 is not UTF-8"):
        list(documents(tmp_path / "a.parquet").read())


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", ["cut", "data", "footer", "empty"])
def test_a_damaged_parquet_file_is_one_error_that_names_it(tmp_path, damage):
    path = write_parquet(tmp_path / "a.parquet", TEXTS * 100, use_dictionary=False, write_page_checksum=True)
    contents = bytearray(path.read_bytes())
    if damage in ("data", "footer"):
        data = pq.ParquetFile(path).metadata.row_group(0).column(2).data_page_offset + 100
        contents[data if damage == "data" else -6] ^= 0xFF
    path.write_bytes({"cut": contents[: len(contents) // 2], "empty": b""}.get(damage, contents))
    with pytest.raises(RunError, match=r"a\.parquet is damaged or not a Parquet file"):
        list(documents(path).read())


@pytest.mark.bad_input
def test_without_pyarrow_parquet_is_refused_with_the_fix(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(RunError, match=r"a\.parquet cannot be read without pyarrow: pip install pyarrow"):
        documents(path)


@pytest.mark.bad_input
@pytest.mark.parametrize("names", [["train"], ["test"], ["train", "validation"], ["a", "b"]])
def test_a_folder_of_shards_without_the_split_is_refused(tmp_path, names):
    split = "test" if "train" in names else "train"
    for name in names:
        write_shards(tmp_path, name, TEXTS, 1)
    with pytest.raises(RunError, match=rf"named {names[0]}\*.*, and none named {split}\*; .*--data\.{split}"):
        documents(tmp_path, split=split)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.csv", b"", "a.csv names no columns; it must begin with a line of their names"),
        (
            "a.csv",
            b"text;label\nx;bad\n",
            "text;label, and no label and no text; write commas",
        ),
        ("a.csv", b"id,review\n1,x\n", "a.csv has the columns id, review, and no label and no text"),
        ("a.csv", b"text,label,text\nx,1,y\n", "a.csv has several columns text; give each another name"),
        ("a.csv", b"text,label\nx,1\ny\n", "a.csv: line 3 has 1 columns; the header has 2"),
        (
            "a.csv",
            b"text,label\nx,1\ny, \n",
            "a.csv: line 3 has label ' '; it must be a word or a whole number",
        ),
        ("a.csv", b"text,label\nx,1\n\xff,2\n", r"a.csv: line 3 is not UTF-8"),
        ("a.csv", b'text,label\n"x,1\n', "a.csv: line 2 cannot be read as CSV: unexpected end of data"),
        ("a.csv", b'text,label\n"x"y,1\n', "a.csv: line 2 cannot be read as CSV"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text"\n', "a.jsonl: line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: line 1 is not JSON"),
        ("a.jsonl", b'["x", 1]\n', "a.jsonl: line 1 is no object with text and label"),
        ("a.jsonl", b'{"text": "x"}\n', "a.jsonl: line 1 is no object with text and label"),
        ("a.jsonl", b'{"text": 3, "label": 1}\n', "a.jsonl: line 1 has text 3; it must be a text"),
        ("a.jsonl", b'{"text": "x", "label": 0.5}\n', r"a.jsonl: line 1 has label 0\.5; it must be a word"),
        ("a.jsonl", b'{"text": "x", "label": true}\n', "a.jsonl: line 1 has label True"),
        ("a.txt", b"x", r"a.txt ends in .txt; it must be .csv, .tsv, .jsonl or .parquet, or a folder"),
        ("a", None, "a does not exist; name a .csv, .tsv, .jsonl or .parquet file, or a folder of"),
        ("a", "empty folder", r"a has no folder with .txt files in it; it must have one for each class"),
        ("a", "not UTF-8", r"0.txt is not UTF-8"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_the_line(tmp_path, name, contents, message):
    path = tmp_path / name
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        (path / "pos").mkdir(parents=True)
    if contents == "not UTF-8":
        (path / "pos" / "0.txt").write_bytes(b"\xff")
    with pytest.raises(RunError, match=message):
        list(documents(path).read())
