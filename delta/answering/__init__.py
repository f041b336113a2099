"""Answer rows with finished deltas: from files or a pipe, several deltas at once, or the one that a
route chooses."""
