"""Remembers: findings in DuckDB, work in progress in SQLite, search over both, and what people say of them."""
