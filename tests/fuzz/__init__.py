"""Hostile input: what a call answers, without a kernel; and a fuzzer that looks for what nobody thought of."""
