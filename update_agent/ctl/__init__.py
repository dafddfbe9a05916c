"""A host's small programs: one process for one thing.

For people ``update-agentctl``, and ``update-agent-slots`` for recovery; for systemd
``update-agent-confirm``, ``update-agent-firstboot`` and ``update-agent-reboot``.
"""
