"""Reports for people to look at: pictures of a segmentation."""
