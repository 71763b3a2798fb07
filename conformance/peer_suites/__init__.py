"""Suites of containernetworking/plugins, unchanged, with the plugin in a peer's place or in its lists."""
