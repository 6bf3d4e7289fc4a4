"""What can be known before a run: see `ladle doctor`."""
