"""The cascade: operations and nets, chunk by chunk, on the CPU and on a GPU. `trtseg.cascade.base` has the contract."""
