"""Verse: what the forms ask, and whether a poem keeps them."""
