"""Prepare training data: filter the corpus, encode it into a token store, pack it into blocks.

`cleaning` decides which documents are kept; `sentences` finds the units of a document; `store`
holds them as token ids, and `prepare` is the stage that writes it; `packing` cuts a split's stream
into blocks, `blocks` reads them, and `sampler` puts them in an order. docs/data_format.md describes
what lies on disk."""
