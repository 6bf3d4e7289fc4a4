"""Models and tokenizers: fetched or fresh, loaded and saved with every tensor accounted for."""
