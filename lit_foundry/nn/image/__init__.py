"""Image networks, and what is done to batches of images."""
