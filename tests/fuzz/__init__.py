"""Hostile input without a kernel: a harness for calls, and a fuzzer."""
