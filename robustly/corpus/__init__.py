"""The corpus: its files and datasets, partitions, documents, filter decisions, and executors."""
