"""transformers' names of the parameters of RoBERTa that this folder treats apart."""

WORDS = "roberta.embeddings.word_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"
FIRST_FEED_FORWARD = "roberta.encoder.layer.0.intermediate.dense.weight"
OUTPUT = "lm_head.decoder.weight"  # tied to WORDS
OUTPUT_BIAS = "lm_head.bias"
