"""Tests; `make test` runs all but those on LocalStack, which `make e2e` runs."""
