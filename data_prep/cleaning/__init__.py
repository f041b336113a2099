"""Cleaning: filters, contamination, exact and near duplicates."""
