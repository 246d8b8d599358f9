"""Where metrics, images and histograms of a run go: one file for each logger."""
