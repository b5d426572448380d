"""SOLO."""
