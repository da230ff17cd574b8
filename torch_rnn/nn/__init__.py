"""The module around the recurrence: x or ids -> logits."""
