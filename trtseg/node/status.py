"""The statuses of DICOM (PS3.4, PS3.7) with which the node answers."""

SUCCESS = 0x0000
INVALID_ARGUMENT = 0x0115  # a storage commitment request without what it needs
PROCESSING_FAILURE = 0x0110  # a storage commitment request by somebody who cannot be answered
NO_SUCH_ACTION = 0x0123
CLASS_NOT_SUPPORTED = 0x0122  # an object that is no CT image
OUT_OF_RESOURCES = 0xA700  # no space, or a limit is reached: may be sent again later
NOT_OF_ITS_CLASS = 0xA900  # the data set is not what the request says that it is
CANNOT_UNDERSTAND = 0xC000  # the data set cannot be read, or lacks a UID
OTHER_CONTENTS = 0xC100  # another instance with the same UID is stored
TOO_LARGE = 0xC101  # the image claims more rows, columns or frames than are taken
