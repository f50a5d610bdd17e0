"""Would it run on a TPU slice, and how fast could it be?  A traced step -> the TPU compiler on this CPU -> figures."""
