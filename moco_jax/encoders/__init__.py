"""Trained encoders: read them, encode images, search neighbours and classify by kNN."""
