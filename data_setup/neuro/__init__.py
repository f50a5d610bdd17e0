"""Brain images and questions about them: files or generated brains -> records -> samples -> batches of rows."""
