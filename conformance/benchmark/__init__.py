"""Benchmark the plugin against its peers: the same work in one run, with calls in turn."""
