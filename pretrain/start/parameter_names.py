"""transformers' names of those of RoBERTa's parameters that are more than a layer's."""

WORDS = "roberta.embeddings.word_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"
OUTPUT = "lm_head.decoder.weight"  # tied to WORDS
OUTPUT_BIAS = "lm_head.bias"
