"""Text of any size in packed rows."""
