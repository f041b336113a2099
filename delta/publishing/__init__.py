"""Hand a delta on: its card, a plain folder with the base, the Hugging Face Hub."""
