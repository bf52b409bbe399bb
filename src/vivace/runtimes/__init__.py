"""Runtimes: what computes a bundle's probabilities. `table` has a row of facts for each, `loading` opens one."""
