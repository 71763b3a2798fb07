"""The operator's commands, one file or folder each; `cli` is the command line.

They read the kernel and the records, and print; changes go through the NAT Manager. No other package imports them.
"""
