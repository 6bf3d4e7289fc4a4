"""Model soups: the weighted mean of models of one architecture, streamed from disk to disk.

`config` says what is averaged and how, `members` opens the models, `compare` refuses what does not fit, `weights` turns
a method into shares, `mean` is the arithmetic, and `make` writes the model folder.
"""
