"""What a model, an adapter, a run or a checkpoint is, as plain values: read from files, nothing trained or changed."""
