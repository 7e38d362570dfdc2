"""The HTTP API: requests to values, values to responses, errors to status codes."""
