"""Opens data sets: images, labels and class names."""
