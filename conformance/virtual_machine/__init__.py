"""The frozen program's kernel tests in virtual machines with other kernels: conformance/kernels prepares and starts it."""
