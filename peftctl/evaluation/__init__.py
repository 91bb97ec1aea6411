"""Measuring a model on held-out rows: loss, and the likelihood of given answers."""
