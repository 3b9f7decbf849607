"""Model files ↔ plain tensors and shapes. Does not use `nn.Module`."""
