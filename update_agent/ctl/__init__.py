"""The command line of a host: ``update-agentctl``, and ``update-agent-slots`` for recovery."""
