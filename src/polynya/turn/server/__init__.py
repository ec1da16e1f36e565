"""The TURN server: a control plane that answers requests and commands a data plane, and the reference data plane."""
