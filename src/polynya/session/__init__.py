"""Session: one machine that gathers, routes each packet to its machine, and carries data."""
