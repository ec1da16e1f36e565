"""What every machine shares: addresses, flows, inputs and outputs, timers, the pacer, errors and the trace."""
