"""From two trees to a verdict: structure by structure, value by value."""
