"""batches -> loss -> gradients -> weights: the LightningModule, the command line, and what a run leaves.

`main` reads a configuration, trains a `Classifier`, lets validation choose its weights and reports.
`Checkpoints` lets a run that was killed go on to the same bits. `TextClassifier` labels texts with it, and
`teacher` writes files of such labels.
"""

from torch_rnn import lazy

_MODULES = {
    "main": "entry",
    "Classifier": "classifier",
    "LanguageModel": "language_model",
    "Checkpoints": "checkpoint",
    "Metrics": "metrics",
    "ProgressBar": "progress_bar",
    "TextClassifier": "text_classifier",
    "TextGenerator": "text_generator",
}
__all__ = list(_MODULES)
__getattr__ = lazy.loader(__name__, _MODULES)
