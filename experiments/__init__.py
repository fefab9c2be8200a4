"""Proves: studies and benchmarks, one command each."""
