"""Measures of a run's records, and their statistics."""
