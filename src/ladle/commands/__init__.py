"""The parts of the command line that have files of their own; `ladle.cli` puts them together."""
