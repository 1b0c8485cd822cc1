"""Image networks, a file each."""
