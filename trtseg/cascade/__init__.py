"""The cascade: operations and nets, slice by slice, on the CPU and on a GPU."""
