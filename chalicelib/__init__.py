"""The application and its AWS adapters: everything that goes to Lambda."""

__version__ = "0.2.0"
