"""Questions with known answers: read from a dataset, or generated word problems."""
