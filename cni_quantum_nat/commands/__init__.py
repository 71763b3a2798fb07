"""The operator's commands, a file or a folder each; `cli` is the command line.

They read the kernel and the records and print; what they change, they change through the NAT Manager. Nobody imports them.
"""
