"""The vocabulary, the state machines and the arithmetic of policies. Pure: no I/O, no clock, no randomness."""
