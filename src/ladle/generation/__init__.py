"""Completions of prompts: what decides them, and the backends that make them."""
