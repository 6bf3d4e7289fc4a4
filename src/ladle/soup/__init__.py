"""Model soups: the exact weighted mean of models of one architecture, streamed from disk to disk.

`config` says what is averaged and how, `weights` turns a method into coefficients, `members` and `compare` read the
models and refuse what does not fit, `plan` lays out the output, `stream` does the work, `writer` makes the result a
model folder.
"""
