"""update-agent-writer: the only process that writes slots and boot flags, and trusts nobody."""
