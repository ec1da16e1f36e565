"""Data planes of the TURN server: the contract, the portable plane, and the choice between planes."""
