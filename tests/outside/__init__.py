"""A paradigm and a dataset as a user would write them, outside of the package."""
