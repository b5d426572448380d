"""Each op against plain PyTorch, torch.compile and its floor: `make bench`."""
