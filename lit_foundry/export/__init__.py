"""Networks in forms that others load, and trained ones in use."""
