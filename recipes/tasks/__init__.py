"""The tasks a recipe can train on: one file each."""
