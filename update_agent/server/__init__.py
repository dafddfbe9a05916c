"""update-server: the repository, reports of hosts, and who steers a rollout."""
