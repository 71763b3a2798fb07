"""The model: attachments, port mappings, addresses, settings, errors, and JSON as text.

Small classes without I/O. Every package may import them; they import only each other.

A pod's start waits for this module.
"""
