"""Model files ↔ plain tensors and shapes. Knows no `nn.Module`."""
