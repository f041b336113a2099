"""Torch modules that methods put into the encoder."""
