"""Streams of the residual, the operators that mix them, and the gate."""
