"""The use cases of Timers, and the Protocols that hide AWS, SQLite and HTTP from them."""
