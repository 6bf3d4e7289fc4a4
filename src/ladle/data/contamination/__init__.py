"""Finds training documents that share a run of words with a benchmark."""
