"""Did it learn: features -> numbers (collapse, rank, probes) -> findings -> one verdict. No model, no device."""
