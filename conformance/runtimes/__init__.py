"""Real runtimes run the plugin: conformance/run."""
