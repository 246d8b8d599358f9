"""Opens files that hold many images: tar archives and .npz files."""
