"""Helpers that every folder may use: files, checks, the machine, the console."""
