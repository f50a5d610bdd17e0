"""A run folder -> one HTML page that says whether the run learned, and shows why one should believe it."""
