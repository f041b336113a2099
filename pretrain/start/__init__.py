"""Starting from other checkpoints: transformers' folders, runs of ours, fairseq's files."""
