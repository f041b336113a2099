"""Documents to blocks: units, token store, training view.

`sentences` finds the units of a document; `store` holds all of it as token ids; `blocks` cuts a
split's stream into blocks; `prepare` is the stage; `npy` writes arrays that grow.
docs/data_format.md describes what lies on disk."""
