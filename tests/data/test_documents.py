"""Files of texts: each format gives the same documents, from any place on, or names the wrong line."""

import csv
import json

import pytest

from torch_rnn.data.documents import Document, documents
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


def write_folder(path, rows=TEXTS):
    for i, (text, label) in enumerate(rows):
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / f"{i}.txt").write_bytes(text.encode())
    return path


def write(path, kind):
    path = path / f"texts{kind}"
    if kind == "":
        return write_folder(path)
    return (
        write_lines(path)
        if kind == ".jsonl"
        else write_table(path, delimiter="\t" if kind == ".tsv" else ",")
    )


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ""])
def test_every_format_gives_the_documents_from_any_place_on(tmp_path, kind):
    source = documents(write(tmp_path, kind))
    found = list(source.read())
    assert sorted(document[:2] for document, _ in found) == sorted(TEXTS)
    assert all(document.group == document.text for document, _ in found)
    for i, (_, place) in enumerate(found):
        assert list(source.read(place)) == found[i + 1 :]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = write_table(tmp_path / "texts.csv", header=("text", "label"), encoding="utf-8-sig", rows=[])
    path.write_bytes(path.read_bytes() + b"good,1\n")
    assert [document for document, _ in documents(path).read()] == [Document("good", "1", "good")]


def test_columns_may_have_other_names(tmp_path):
    path = write_table(tmp_path / "texts.csv", header=("id", "sentiment", "review"))
    assert len(list(documents(path, "review", "sentiment").read())) == len(TEXTS)


def test_what_was_changed_has_another_fingerprint(tmp_path):
    for kind in (".csv", ".jsonl"):
        path = write(tmp_path, kind)
        before = documents(path).fingerprint()
        assert documents(path).fingerprint() == before
        path.write_text(path.read_text() + "\n")
        assert documents(path).fingerprint() != before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.csv", b"", "a.csv has the columns none, and no label and no text; name yours with"),
        ("a.csv", b"id,review\n1,x\n", "a.csv has the columns id, review, and no label and no text"),
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
        ("a.parquet", b"PAR1", r"a.parquet ends in .parquet; it must be .csv, .tsv or .jsonl, or a folder"),
        ("a", None, "a does not exist; name a .csv, .tsv or .jsonl file, or a folder of classes"),
        ("a", "empty folder", r"a has no folder with .txt files in it; it must have one for each class"),
        ("a", "not UTF-8", r"0.txt is not UTF-8"),
    ],
)
def test_a_file_that_is_wrong_is_one_error_that_names_the_line(tmp_path, name, contents, message):
    path = tmp_path / name
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        (path / "pos").mkdir(parents=True)
    if contents == "not UTF-8":
        (path / "pos" / "0.txt").write_bytes(b"\xff")
    with pytest.raises(RunError, match=message):
        list(documents(path).read())
