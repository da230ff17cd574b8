"""batches -> loss -> gradients -> weights, and what a run leaves."""
