"""The nouns: attachments, port mappings, addresses, settings, errors, and JSON as text.

Small classes without I/O. Everybody may import them; they import nothing but each other.
"""
