"""Times the plugin beside its peers: the same work, in one run, call for call in turn."""
