"""KTO on the core of training: examples and pairs, the reference pass, the loss, the trainer."""
