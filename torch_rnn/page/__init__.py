"""report.html: one file that shows how a run went and what its RNN does with a sequence.

`write_page` gathers what the page shows, puts it into template.html with page.css, page.js and Plotly's
JavaScript, and writes one file that needs no network.

    finished.py        the run, read from its folder              write.py           data and template -> file
    results.py         scores, confusion matrix, calibration      curves.py          what was logged
    predictions.py     the test split, read once                  contributions.py   a word's part of the logits
    reading.py         weights and texts that the page reads      words.py           the words that push most
    states.py          states on two principal components         slow_points.py     where the recurrence is slow
    memory.py          gradients by distance, eigenvalues of Whh
"""

from torch_rnn import lazy

_MODULES = {"write_page": "hook", "PAGE": "hook"}
__all__ = list(_MODULES)
__getattr__ = lazy.loader(__name__, _MODULES)
