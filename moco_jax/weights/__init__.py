"""Weights of other projects, read from their files."""
