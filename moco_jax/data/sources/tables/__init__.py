"""Opens tables of images: Parquet and Arrow files, lists of paths, and metadata beside images."""
