"""A run's records as tables, plots and a page."""
