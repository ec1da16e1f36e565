"""What people send over a connection."""
