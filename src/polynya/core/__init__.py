"""The parts that all machines share: addresses, flows, inputs and outputs, timers, the pacer, errors and the trace."""
