"""Train a delta: one seed or several, watched, taught by another delta, resumed."""
