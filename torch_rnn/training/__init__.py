"""batches -> loss -> gradients -> weights: the LightningModule, the command line, and what a run leaves.

`cli.main` reads a configuration, trains a `Classifier` and writes the report; `Checkpoints` lets a run that
was killed go on to the same bits.
"""

from torch_rnn import lazy

_MODULES = {"Classifier": "classifier", "Checkpoints": "checkpoint", "Metrics": "metrics", "main": "cli"}
__all__ = list(_MODULES)
__getattr__ = lazy.loader(__name__, _MODULES)
