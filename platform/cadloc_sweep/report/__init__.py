"""Results -> statistics and tables: what the trials of a sweep say, with uncertainty."""
