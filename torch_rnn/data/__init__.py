"""text -> tokens -> ids -> batches (x, lengths, labels); each data set is a LightningDataModule.

A data set yields documents, `tokenizing` writes their ids to a cache once, `tokens` reads them, and `batches`
draws batches of similar length. Reading order: text, documents, formats, tokens, tokenizing, cache, batches,
datamodule, corpus, the data sets.
`lessons` adds what teachers say to the training texts. `teaching` fits and asks them: `ngrams`, with or
without the weights of `vectors`, or a file of labels.
"""

from torch_rnn import lazy

_MODULES = {
    "IMDB": "imdb",
    "TextFiles": "textfiles",
    "TextStream": "textstream",
    "IMDBStream": "imdbstream",
    "Grammar": "grammar",
    "Addition": "addition",
    "SequenceData": "datamodule",
    "Corpus": "corpus",
    "Batch": "batches",
    "Vocabulary": "text",
    "tokenize": "text",
}
__all__ = list(_MODULES)
__getattr__ = lazy.loader(__name__, _MODULES)
