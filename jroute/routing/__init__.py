"""Streams of the residual, the operators that mix them, the gate, and C(g)."""
