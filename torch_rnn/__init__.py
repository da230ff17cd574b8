"""torch_rnn: the vanilla RNN, h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh), y = Why h[T] + by.

Start at reference.py, the whole model in NumPy. Then, from below: ops computes the recurrence, nn has the
module around it, data turns texts into batches, training fits a module to them, benchmarks compares it.
"""

from torch_rnn import lazy

__version__ = "0.1.0"
__all__ = ["RNN", "NumpyRNN", "TextClassifier", "TextGenerator", "compat", "recurrence"]
__getattr__ = lazy.loader(
    __name__,
    {
        "RNN": "nn.module",
        "NumpyRNN": "reference",
        "TextClassifier": "training.text_classifier",
        "TextGenerator": "training.text_generator",
        "compat": "nn.compat",
        "recurrence": "ops",
    },
)
