"""OCT files that are not DICOM in, the same verified volumes [D, H, W] out; one reader per vendor's container."""
