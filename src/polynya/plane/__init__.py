"""Data planes of the TURN server with sockets of their own: the portable plane, alone or in worker processes."""
