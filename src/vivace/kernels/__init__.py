"""Kernels of our own for CPUs: C that the machine's compiler builds at first use; without one, torch's are used."""
