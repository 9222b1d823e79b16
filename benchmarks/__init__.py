"""What waiting costs and what it survives, measured side by side with other providers' triggers."""
