"""Trainings with teachers on small made texts."""

from torch_rnn.data import teaching, tokens
from torch_rnn.data.grammar import corpus
from torch_rnn.data.ngrams import NGrams
from torch_rnn.data.textfiles import TextFiles


def text_rows(n, seed, classes=("bad", "good")):
    texts, labels = corpus(n, seed)
    return [
        (f"{text} {seed}x{i}", classes[label])
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def texts(files, more="more.csv", **settings):
    settings = {"unlabelled": str(files / more), "teacher": "ngrams", **settings}
    if settings["teacher"] not in teaching.FITTED:
        del settings["unlabelled"]
    settings = {"cache": str(files / "cache"), **settings}
    data = TextFiles(str(files / "train.csv"), str(files / "test.csv"), **settings)
    data.setup()
    return data


def fitted_on(data, rows):
    """Returns the teacher that is fitted on these rows of the training texts."""
    train = tokens.read_tokens(data.tokens, "train")
    model = NGrams.fit(train, rows, len(teaching.words(data.tokens)), 2)
    if data.more_tokens is None:
        return model
    more = tokens.read_tokens(data.more_tokens, "unlabelled")
    return model.taught(train, rows, more, data.lessons.labels.index)
