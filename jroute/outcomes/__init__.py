"""Outcome tables: what each gate gave on each problem."""
