"""The composer: one machine that gathers, finds the machine a packet belongs to, and carries data."""
