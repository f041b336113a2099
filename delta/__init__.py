"""Delta tuning: small modules that attach to a published checkpoint."""
