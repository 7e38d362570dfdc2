"""The standalone server's database: one SQLite file with a write-ahead log (WAL)."""
