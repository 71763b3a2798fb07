"""Taken rarely: a configuration that was not seen before, a table that is not there."""
