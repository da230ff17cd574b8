"""The one kind of error that a script answers with a sentence and exit status 2, not with a traceback."""


class RunError(ValueError):
    """What was asked for cannot be done with this data, in this folder or on this machine."""


def diverged(what: str, step: int) -> RunError:
    """The error for a training whose numbers are no longer finite."""
    return RunError(
        f"{what} is not finite at step {step}: the training diverges; lower --model.learning_rate or "
        f"--trainer.gradient_clip_val (checkpoints hold finite weights only)"
    )
