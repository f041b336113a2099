"""Words: the pieces of text that byte-pair merges never cross, and how often each occurs."""

# GPT-2's pre-tokenizer (Radford et al. 2019, `encoder.py`), written without needless backtracking: contractions; a run
# of letters, of digits or of other characters, each with one space before it; white space, of which the last character
# is left to the word after it if that can take it.
PATTERN = r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s"
