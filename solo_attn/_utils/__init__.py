"""What every folder may use: files, checks, the machine, the console."""
