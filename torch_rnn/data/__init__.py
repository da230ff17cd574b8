"""text -> tokens -> ids -> batches."""
