"""`octfm health`: has it learned, is anything broken? Of runs, checkpoints and foreign logs."""
