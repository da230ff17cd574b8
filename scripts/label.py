"""Label texts with the probabilities of a teacher, for a training with --data.teacher FILE.

A teacher is "ngrams" or "vectors", which are fitted on the texts of --train and on those of --data, or the
folder of a trained run. Several teachers give the mean of their probabilities. --data and --train take the
files and folders of train_text.py, and IMDB's archive or folder.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from torch_rnn.training.entry import ends_quietly

with ends_quietly(waits=True):  # imports
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from torch_rnn.data import IMDB, TextFiles
    from torch_rnn.data.corpus import Corpus
    from torch_rnn.data.documents import Document, Documents
    from torch_rnn.data.formats import documents
    from torch_rnn.data.imdb import is_imdb, read_unlabelled, unlabelled_in, unlabelled_reviews
    from torch_rnn.data.teaching import FITTED, Source
    from torch_rnn.errors import RunError
    from torch_rnn.training.teacher import Mixture, NGramTeacher, labelled, load_run, write_labels, writer


class TrainTexts(TextFiles):
    """Labelled texts without a test split."""

    def __init__(self, train: Path, **settings: object):
        super().__init__(str(train), str(train), **settings)

    def source(self) -> tuple[list[Path], dict, Callable[[], dict[str, Documents]]]:
        source = documents(self.train, self.text_column, self.label_column)
        return [self.train], {"train": source.fingerprint()}, lambda: {"train": source}


def labelled_texts(name: str, chosen: argparse.Namespace) -> Corpus:
    """Returns the labelled texts that the teacher of this name is fitted on."""
    if chosen.train is None:
        raise RunError(f"the teacher {name} needs labelled texts; name them with --train")
    settings = {"cache": chosen.cache, "validation": 0.1 if chosen.validation is None else chosen.validation}
    if is_imdb(chosen.train):
        return IMDB(str(chosen.train), **settings)
    columns = {"text_column": chosen.text_column, "label_column": chosen.label_column or "label"}
    return TrainTexts(chosen.train, **columns, **settings)


def texts(chosen: argparse.Namespace) -> Documents:
    """Returns the texts to label."""
    if is_imdb(chosen.data):
        return read_unlabelled(unlabelled_in(chosen.data))
    return documents(chosen.data, chosen.text_column, None, "unlabelled")


def unlabelled(chosen: argparse.Namespace, source: Documents) -> Source:
    """Returns the texts to label as those that a teacher learns from."""
    if is_imdb(chosen.data):
        return unlabelled_reviews(unlabelled_in(chosen.data))._replace(open=lambda: source)
    return Source(chosen.data, source.fingerprint(), lambda: source, has_films=False)


def watched(source: Documents) -> Iterator[Document]:
    """Yields the documents, and shows a progress bar."""
    with Progress(*(BarColumn(), DownloadColumn(), TimeRemainingColumn())) as progress:
        bar = progress.add_task("", total=source.size)
        for document, position in source.read():
            yield document
            progress.update(bar, completed=source.bytes_before(position))


@ends_quietly()
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--teacher", nargs="+", required=True, metavar="ngrams|vectors|RUN", help="one or more"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="the texts to label")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .jsonl or .parquet file")
    parser.add_argument(
        "--train", type=Path, metavar="PATH", help="the labelled texts, for ngrams and vectors"
    )
    parser.add_argument(
        "--validation", type=float, help="the part of --train that is left out (default: 0.1)"
    )
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--label_column", help="of --train (default: label)")
    parser.add_argument("--cache", help="the folder for tokens and teacher; by default data/cache")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name in ("train", "validation", "label_column"):
            if (value := getattr(chosen, name)) is not None and not set(FITTED) & set(chosen.teacher):
                raise RunError(
                    f"--{name} is {value}, and no teacher is fitted; add ngrams or vectors to --teacher"
                )
        writer(chosen.out)  # a teacher may take minutes
        source = texts(chosen)
        teachers = [
            NGramTeacher(name, labelled_texts(name, chosen), unlabelled(chosen, source))
            if name in FITTED
            else load_run(Path(name))
            for name in chosen.teacher
        ]
        teacher = Mixture(teachers)
        n = write_labels(chosen.out, teacher.classes, labelled(teacher, watched(source)))
    except (OSError, ValueError, ImportError, RunError) as error:
        message = str(error).replace("--data.unlabelled", "--data").replace("--data.", "--")
        print(f"error: {message}", file=sys.stderr)
        return 2
    print(f"{chosen.out} has {n:,} texts with the probabilities of {', '.join(teacher.classes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
