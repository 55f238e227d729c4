"""Data sets of images and texts."""
