"""Data: text files in, batches of token ids out."""
