"""The training run: the path from recipe to published adapter, and the loop at the heart of it."""
