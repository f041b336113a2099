"""Tasks of a delta: `config` is their section, `files` reads their rows, `examples` makes checked
examples of these, and `data` keeps training and tests apart; `template` is the text of a cloze,
`tags` knows the schemes of entities; `heads` turns examples into tensors, losses and answers;
`metrics` are the scores."""
