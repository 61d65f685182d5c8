"""What the roles stand on: the one place that connects, servers that outlive their connections, bounded channels."""
