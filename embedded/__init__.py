"""The former name of `standalone`."""
