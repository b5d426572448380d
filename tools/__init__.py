"""Checks of what is built: neither product nor benchmark."""
