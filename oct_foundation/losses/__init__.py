"""Losses as functions of tensors, one idea per file; they know no model and no device."""
