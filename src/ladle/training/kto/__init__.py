"""KTO on the training core: labels and pairs, the reference pass, steps repacked by length, the loss and its metrics.

`trainer` is where they meet; `config` is the recipe's section.
"""
