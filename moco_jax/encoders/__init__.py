"""Trained encoders: reads them, encodes images, searches neighbours and classifies by kNN."""
