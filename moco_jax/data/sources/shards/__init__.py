"""Shards of tar files as one source, read by offset from an index of each."""
