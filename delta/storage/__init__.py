"""A delta on disk: what is trained, without its base; peft's files of it; merged into weights."""
