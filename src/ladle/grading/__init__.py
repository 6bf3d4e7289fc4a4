"""Grading of mathematical answers: extract, read, compare, within limits that no answer can break."""
