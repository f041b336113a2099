"""Torch modules that methods put into the encoder.

They stand apart from the methods' files so that a config is read without torch: `adapter` is
adapter's, `prefix` prefix's and p_tuning_v2's, `soft_tokens` prompt's, p_tuning's and
intrinsic_prompt's, `routing` routed's. `by_row` makes of several deltas one encoder."""
