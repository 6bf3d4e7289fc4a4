"""Datasets in: mixtures of tokens to pretrain on, questions to ask, preferences to align to.

`files` and `rows` find and read rows of any format, for everybody. A mixture (`mix`) then goes from `documents` (text
made of rows) through `tokenize` (token shards, kept by content) and `contamination` (documents that repeat a benchmark)
to `mixing` (which documents, how often, in which rows) and `store` (what is on disk, which training maps).
"""
