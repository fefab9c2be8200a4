"""Measures: everything that touches a subject model, and the numbers made from it."""
