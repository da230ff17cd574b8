"""report.html: one file that shows how a run went and what its RNN does with a sequence.

`write_page` gathers what the page shows, puts it into template.html with page.css, script/ and Plotly's
JavaScript, and writes one file that needs no network.

    finished.py        the run, read from its folder
    predictions.py     the test split, read once
    results.py         scores, confusion matrix, calibration
    curves.py          what was logged
    contributions.py   how far each word moves the logits
    reading.py         the weights and texts that the page reads
    originals.py       the texts as they were before they became words
    words.py           the words that push most
    writing.py         the weights with which the page writes
    states.py          states on two principal components
    slow_points.py     where the recurrence is slow
    memory.py          gradients by distance, eigenvalues of Whh
    language.py        scores and gradients of a language model
    language_states.py its states and slow points
    write.py           all of it and the template -> one file
    script/            the page in plain JavaScript: the RNN, its readings, the plots
    script/panels/     a file for each panel
"""

from torch_rnn import lazy

_MODULES = {"write_page": "hook", "PAGE": "hook"}
__all__ = list(_MODULES)
__getattr__ = lazy.loader(__name__, _MODULES)
