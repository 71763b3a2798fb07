"""The promises and tests of other programs, restated as what a client sees, and run with them and with Quantum NAT."""
