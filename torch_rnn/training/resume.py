"""Which run a folder holds, and whether the settings at hand may continue it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from torch_rnn.errors import RunError
from torch_rnn.training.checkpoint_file import read_checkpoint

RESULTS, CONFIG = "results.json", "config.yaml"
MAY_CHANGE = re.compile(
    r"config|trainer\.(default_root_dir|accelerator|devices|num_nodes|strategy|enable_\w+|profiler|logger.*)"
    r"|model\.cuda_graph|data\.init_args\.(root|cache)|checkpoint\.seconds"
)
"""Settings that may change on resume: they change none of a run's numbers, or no more than a device does."""
LENGTHS = ("trainer.max_epochs", "trainer.max_steps")
"""Settings that may grow on resume where the learning rate does not depend on them."""


def run_settings(config: Any, name: str = "") -> dict[str, Any]:
    """Returns a configuration's leaves by their dotted names, without those that may change on resume.

    Callbacks are numbered, without progress bars: none of them is the same as no callback.
    """
    if isinstance(config, list) and all(isinstance(item, dict) for item in config):
        items = [item for item in config if "ProgressBar" not in item.get("class_path", "")]
        config = {str(number): item for number, item in enumerate(items)}
    if not isinstance(config, dict):
        return {} if MAY_CHANGE.fullmatch(name) else {name: config}
    settings = {}
    for key, value in config.items():
        settings |= run_settings(value, f"{name}.{key}" if name else key)
    return settings


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises RunError for the first setting that has changed and may not."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name) or MAY_CHANGE.fullmatch(name):
            continue
        why = ""
        if name in LENGTHS:
            if now.get("model.schedule") != "constant":
                why = (
                    " (the cosine schedule has spread its learning rates over the length that it began with)"
                )
            elif _limit(now[name]) < _limit(before[name]):
                why = " (it may only grow)"
            else:
                continue
        raise RunError(
            f"{name} is {now.get(name)} and was {before.get(name)} in the run so far{why}; go on with its "
            f"own settings, or start another with --trainer.default_root_dir"
        )


def check_same_data(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises RunError if the digests of the data have changed; names what they are of."""
    if "data" in before:  # the name of a digest in older checkpoints
        raise RunError(
            "the checkpoint is of an earlier version of torch_rnn; finish the run with that one, or start "
            "another with --trainer.default_root_dir"
        )
    if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        raise RunError(
            f"the data have changed since the checkpoint: other {', other '.join(changed)}; "
            "restore them, or start another run with --trainer.default_root_dir"
        )


def is_longer(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether settings that passed `check_same_run` ask for more training than before."""
    return any(_limit(now[name]) > _limit(before[name]) for name in LENGTHS)


def check_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a checkpoint. Raises RunError where it is not one of a run with these settings."""
    checkpoint = read_checkpoint(path)
    if "settings" not in checkpoint:
        raise RunError(f"{path} is not a checkpoint of a training run; name one that a run has left")
    check_same_run(checkpoint["settings"], settings)
    if is_longer(checkpoint["settings"], settings) and checkpoint.get("stopped_early"):
        raise RunError(
            f"{path} is of a run that was stopped before its limit, by early stopping or max_time; a higher "
            f"limit would not continue it"
        )
    return checkpoint


def read_finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns results.json and the settings of a finished run. Raises RunError where they are damaged."""
    read = []
    for name, parse in ((RESULTS, json.loads), (CONFIG, yaml.safe_load)):
        try:
            read.append(parse((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise damaged(folder, name) from error
    results, settings = read[0], run_settings(read[1])
    if not settings.keys() >= {*LENGTHS}:
        raise damaged(folder, CONFIG)
    return results, settings


def damaged(folder: Path, name: str) -> RunError:
    """The error for a file of a finished run that cannot be read or lacks something."""
    return RunError(
        f"{folder / name} is missing, damaged or incomplete, though the run is finished; delete "
        f"{folder / RESULTS}, then --resume auto writes both again from the checkpoint"
    )


def _limit(value: int | None) -> float:
    return float("inf") if value in (None, -1) else value
