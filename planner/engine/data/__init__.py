"""Tokens: where they come from (`corpus`) and in which order they are read (`order`)."""
