"""A runtime waits for this code: an allow-list of modules, see README.md here."""
