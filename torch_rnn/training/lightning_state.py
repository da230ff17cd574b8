"""Repairs of the state of Lightning's loops in a checkpoint, so that a resumed run repeats and skips nothing.

Written for lightning 2.6, whose loops restart from the ends of epochs and validations only.
"""

from typing import Any


def continue_with_next_step(loops: dict[str, Any]) -> None:
    """Changes the state of loops that have just begun a step to that after the step before it."""
    batches = loops["epoch_loop.batch_progress"]
    total, current = batches["total"]["completed"], batches["current"]["completed"]
    batches["current"] = dict.fromkeys(batches["current"], current)
    # With all of these equal, Lightning would assume that a validation has just ended, and count a step more.
    batches["total"] = dict.fromkeys(batches["total"], total) | {"started": total - 1}
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # the resumed step counts it again
    loops["state_dict"]["combined_loader"] = [{"step": current}]


def continue_with_validation(loops: dict[str, Any]) -> None:
    """Changes the state of loops within a validation to that at its start, with one batch begun.

    With no batch begun, Lightning would skip the validation.
    """
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["current"] = dict.fromkeys(validation["current"], 0)
    validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False
    batches = loops["epoch_loop.batch_progress"]
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["completed"])
    step = 0 if batches["is_last_batch"] else batches["current"]["completed"]  # 0 of the next epoch
    loops["state_dict"]["combined_loader"] = [{"step": step}]
