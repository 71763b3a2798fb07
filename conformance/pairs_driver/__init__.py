"""Two calls at once: one is stopped behind each of its system calls, another runs, and the first goes on."""
