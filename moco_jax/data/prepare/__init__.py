"""The command that prepares data: TFDS data sets, and shards of any images."""
