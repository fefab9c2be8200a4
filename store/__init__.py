"""Remembers: findings in DuckDB, work in progress in SQLite, and search over both."""
