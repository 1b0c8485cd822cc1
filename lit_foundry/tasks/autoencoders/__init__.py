"""Autoencoders of images, a file each."""
