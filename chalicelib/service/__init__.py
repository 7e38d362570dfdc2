"""What Timers does, over Protocols that hide AWS, SQLite and HTTP."""
