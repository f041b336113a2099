"""Checkpoints: what they hold, written while training goes on, and the disk space they take."""
