"""Data sets: where images, labels and class names come from."""
