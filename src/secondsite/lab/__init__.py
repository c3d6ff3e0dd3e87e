"""The lab: two sites on one machine, and a guest built on the spot. For tests and for the demo, not for production."""
