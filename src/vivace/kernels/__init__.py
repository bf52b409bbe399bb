"""Our kernels for CPUs, in C, built by the machine's compiler at first use; without a compiler, torch's are used."""
