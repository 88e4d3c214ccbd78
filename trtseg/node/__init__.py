"""The node: CTs come in over DICOM, are segmented while they come, and results go out.

Three processes share a folder and nothing else: `receive` writes instances into the spool, `work` segments them,
`forward` sends what came of them. `run` starts and watches them. Each may be killed at any moment, since everything
that matters is in the spool before anybody is told.
"""
