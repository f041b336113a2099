"""Updates with a loss or gradient that is not finite, or unusual: examined, skipped, recorded."""
