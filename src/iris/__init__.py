"""Iris: fine-tune an open language model, prove whether it got better, and let it write poems."""

__version__ = "0.1.0"
