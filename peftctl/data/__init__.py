"""From files to batches: rows, examples, encoded rows, their order, and the micro-batches of a step."""
