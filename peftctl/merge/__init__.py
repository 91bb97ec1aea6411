"""Adapters baked into weights."""
