"""The version of this package.

A pod's start waits for this module.
"""

__version__ = "1.0.0"
