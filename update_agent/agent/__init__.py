"""``update-agentd``: finds, installs, boots and confirms releases, without touching a disk."""
