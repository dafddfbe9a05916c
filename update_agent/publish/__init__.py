"""The release team's side: ``update-agent-image`` and ``update-publish``."""
