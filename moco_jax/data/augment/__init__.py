"""Views of images, computed on the accelerator."""
