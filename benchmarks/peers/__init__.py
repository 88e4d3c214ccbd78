"""What people use today, as programs of their own: `benchmarks.compare` starts each in a process and times it.

They run in an environment of their own (``make peers``), without trtseg. Each is opened with a model folder, and then
told CT after CT: a NIfTI file in, a label map out. docs/performance-peers.md says why they are as they are.
"""
