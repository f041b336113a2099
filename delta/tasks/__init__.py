"""Tasks of a delta: `config` is their section, `files` reads their rows and `data` makes checked
examples of them; `template` is the text of a cloze; `heads` turns examples into tensors, losses
and answers; `metrics` are the scores."""
