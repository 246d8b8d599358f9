"""Images from files to augmented batches: sources, loading and augmentation."""
