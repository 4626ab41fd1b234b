"""Many trials."""
