"""LocalStack without Docker, for end-to-end tests of the deployed application."""
