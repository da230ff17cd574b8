"""Settings of Lightning's Trainer that a run refuses, since they would be ignored or fail later."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor, EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.strategies import SingleDeviceStrategy

from torch_rnn.errors import RunError

if TYPE_CHECKING:
    from jsonargparse import Namespace

REFUSED = {
    "enable_checkpointing": (False, "the run always saves itself; see checkpoint.seconds"),
    "limit_predict_batches": ("any", "a run does not predict"),
    "overfit_batches": ("any", "use trainer.limit_train_batches"),
    "use_distributed_sampler": (True, "the data give each process its part of every batch"),
    "sync_batchnorm": (True, "the model has no batch normalisation"),
    "barebones": (True, "a run needs its checkpoints and metrics.csv"),
    "model_registry": ("any", "the model is saved as model.safetensors"),
}
"""For each setting the value that is refused ("any": all but none), and the reason."""
REFUSED_CALLBACKS = {
    "ModelCheckpoint": "the run saves itself; see checkpoint.monitor and checkpoint.seconds",
    "OnExceptionCheckpoint": "the run saves itself; see checkpoint.seconds",
    "WeightAveraging": "validation would score other weights than those that are kept",
    "EMAWeightAveraging": "validation would score other weights than those that are kept",
    "StochasticWeightAveraging": "its weights are not those that validation scored",
    "BatchSizeFinder": "set data.batch_size",
    "LearningRateFinder": "set model.learning_rate",
    "BackboneFinetuning": "the model has no backbone",
    "BaseFinetuning": "the model has no backbone",
    "ModelPruning": "a pruned model cannot be saved as model.safetensors",
    "BasePredictionWriter": "a run does not predict",
    "Timer": "use trainer.max_time",
}
AT_LEAST_1 = ("log_every_n_steps", "accumulate_grad_batches", "check_val_every_n_epoch")


def check_trainer(settings: "Namespace", scores: Sequence[str]) -> None:
    """Raises RunError for the first setting that a run cannot obey.

    Args:
        scores: The metrics that callbacks may monitor, of validation and training.
    """
    for name, (value, reason) in REFUSED.items():
        if settings[name] == value or (value == "any" and settings[name]):
            raise RunError(f"trainer.{name} is {str(settings[name]).lower()}; {reason}")
    _check_numbers(settings)
    if str(settings.precision).startswith(("16-true", "transformer")):
        raise RunError(
            f"trainer.precision is {settings.precision}; the weights are float32, float64 or bfloat16: it "
            f"must be 32-true, 64-true, bf16-true, bf16-mixed or 16-mixed"
        )
    if not isinstance(settings.val_check_interval, int | float | None):
        raise RunError(
            f"trainer.val_check_interval is {settings.val_check_interval}; a time of the clock cannot be "
            f"repeated: it must be a number of batches, or a fraction of an epoch"
        )
    if any(word in str(settings.strategy) for word in ("spawn", "fork", "notebook")):
        raise RunError(
            f"trainer.strategy is {settings.strategy}; its processes would keep the weights to themselves: "
            f"use ddp"
        )
    if isinstance(settings.logger, bool):
        raise RunError(
            f"trainer.logger is {str(settings.logger).lower()}; metrics.csv is always written, and a logger "
            f"beside it is named by its class, such as TensorBoardLogger"
        )
    for callback in settings.callbacks:
        _check_callback(
            callback, [f"{split}/{score}" for split in ("validation", "train") for score in scores]
        )
    for plugin in _listed(settings.plugins):
        if "CheckpointIO" in plugin.get("class_path", "") or "Async" in plugin.get("class_path", ""):
            raise RunError(
                f"trainer.plugins has {plugin.class_path}; checkpoints are signed and have their own"
            )


def check_precision(asked: str | int | None, taken: str) -> None:
    """Raises RunError where Lightning has taken another precision than the one asked for."""
    if asked is not None and "mixed" in str(asked) and asked != taken:
        raise RunError(f"trainer.precision is {asked}; on this device it must be {taken} or 32-true")


def check_cuda_graph(trainer: Trainer) -> None:
    """Raises RunError for what a step that is replayed as a CUDA graph cannot do."""
    strategy, accumulates = trainer.strategy, trainer.accumulate_grad_batches
    device, single = strategy.root_device.type, isinstance(strategy, SingleDeviceStrategy)
    scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)
    for unfit, reason in (
        (device != "cuda", f"it needs a GPU with CUDA, and the run is on {device}"),
        (trainer.world_size > 1, f"it needs one process, and there are {trainer.world_size}"),
        (not single, f"trainer.strategy must be auto, and is {type(strategy).__name__}"),
        (accumulates > 1, f"trainer.accumulate_grad_batches must be 1, and is {accumulates}"),
        (scheduled, "gradients are not accumulated over batches; leave GradientAccumulationScheduler out"),
        (trainer.precision == "16-mixed", "trainer.precision must be bf16-mixed, and is 16-mixed"),
        (
            trainer._detect_anomaly,
            "trainer.detect_anomaly looks at values, which a graph cannot: set it false",
        ),
    ):
        if unfit:
            raise RunError(f"model.cuda_graph is true; {reason}")


def check_length(trainer: Trainer) -> None:
    """Raises RunError for a length that a setting contradicts, now that the number of batches is known.

    A trial of one step is no such run. Where the number of steps an epoch changes, nothing is known here.
    """
    changes = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)
    if trainer.fast_dev_run or changes:
        return
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    if trainer.max_epochs not in (None, -1) and (trainer.min_steps or 0) > trainer.max_epochs * steps:
        raise RunError(
            f"trainer.min_steps is {trainer.min_steps}; trainer.max_epochs {trainer.max_epochs} allows "
            f"{trainer.max_epochs * steps:,}"
        )
    first = math.ceil(trainer.val_check_batch / trainer.accumulate_grad_batches)
    first += steps * ((trainer.check_val_every_n_epoch or 1) - 1)
    last = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
    for callback in trainer.callbacks:
        if first > last and isinstance(callback, EarlyStopping) and _looks_at_validation(callback):
            raise RunError(
                f"EarlyStopping looks at the validation after {last:,} steps, and the first comes after "
                f"{first:,}: raise trainer.max_steps, lower trainer.val_check_interval or leave it out"
            )


def _looks_at_validation(callback: EarlyStopping) -> bool:
    """Returns whether it needs a score of the validation at the end of each epoch."""
    return (
        callback.strict and callback.monitor.startswith("validation/") and callback._check_on_train_epoch_end
    )


def check_packages(trainer: Trainer) -> None:
    """Raises RunError where a callback needs a package that is not installed."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    for callback in trainer.callbacks:
        if isinstance(callback, DeviceStatsMonitor):
            stats = on_cpu if callback._cpu_stats is None else callback._cpu_stats
            if stats and find_spec("psutil") is None:
                raise RunError("DeviceStatsMonitor needs a package that is not installed: pip install psutil")


def _check_numbers(settings: "Namespace") -> None:
    clip = settings.gradient_clip_val
    if clip is not None and not 0 <= clip < math.inf:
        raise RunError(f"trainer.gradient_clip_val is {clip}; it must be at least 0, and 0 is no clipping")
    for name in AT_LEAST_1:
        if (value := settings[name]) is not None and value < 1:
            raise RunError(f"trainer.{name} is {value}; it must be at least 1")
    for kind in ("epochs", "steps"):
        least, most = settings[f"min_{kind}"], settings[f"max_{kind}"]
        if least is not None and most is not None and 0 <= most < least:
            raise RunError(f"trainer.min_{kind} is {least}; it must be at most trainer.max_{kind}, {most}")
    if settings.max_steps == 0:
        raise RunError("trainer.max_steps is 0; it must be at least 1, or -1 for no limit")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if settings[name] == 0:
            raise RunError(
                f"trainer.{name} is 0; a run needs at least one batch to train, to choose and to test"
            )


def _check_callback(callback: Any, logged: Sequence[str]) -> None:
    path = callback.get("class_path", "")
    module, _, name = path.rpartition(".")
    if module.startswith("lightning") and name in REFUSED_CALLBACKS:
        raise RunError(f"trainer.callbacks has {name}; {REFUSED_CALLBACKS[name]}")
    monitor = callback.get("init_args", {}).get("monitor")
    if monitor is not None and monitor not in logged:
        raise RunError(f"{path}: monitor is {monitor}; it must be one of {', '.join(logged)}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
