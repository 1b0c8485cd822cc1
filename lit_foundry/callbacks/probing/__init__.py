"""What a run learns of its features while it trains."""
