"""Datasets in: mixtures of tokens to pretrain on, questions to ask, preferences to align to.

A mixture goes through these packages in turn: `sources` (files to documents), `tokenizing` (documents to token
shards), `contamination` (documents that repeat a benchmark), `mixing` (which documents, how often, in which rows) and
`store` (shards and index on disk, which training maps). `questions` and `preference` are small datasets of other kinds.
"""
