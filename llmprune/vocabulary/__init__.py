"""Fewer tokens: which of them stay, and the files of a tokenizer that knows no others."""
